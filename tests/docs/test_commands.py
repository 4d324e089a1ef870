"""The commands in the pages are well-formed, and the ones that ask a server print what is shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from build_scripts.core.command_line import run_one_of
from build_scripts.core.paths import PROJECT
from build_scripts.quality import commands as quality
from tests.docs.pages import ANYTHING, CHINESE, PAGES, blocks, commands, names

# Commands that ask a running server of the default model.
ASKED = re.compile(r"curl -s 127\.0\.0\.1|make (classify TEXT|health|status)|examples/")
# Commands that no test here runs, and why.
NOT_RUN = {
    r"make (repo|serve|package|release|rollback|diff)\b": "build or start something: tests/releases, serving, quality",
    r"make classify (NAME=topic|TEXT=央行)": "need another model: tests/serving/test_names.py, test_examples.py",
    r"make evaluate\b|\.venv/bin/python examples/": "have tests: below, and in test_examples.py",
    r"make doctor MODEL_REPOSITORY=": "needs a package: tests/deploy",
}
# Pages for a cluster, a registry or several machines; tests/deploy runs what can run on one.
ELSEWHERE = ("production.md", "runbook.md")
CONSOLE = [(page, command, shown) for page in PAGES if page != CHINESE for command, shown in commands(page)]


def is_run(command: str) -> bool:
    return bool(ASKED.match(command)) and "央行" not in command


EXAMPLES = [
    pytest.param(command, shown, id=f"{page.name}:{command[:50]}")
    for page, command, shown in CONSOLE
    if is_run(command)
]


def test_every_command_is_run_or_has_a_reason():
    left = [command for page, command, _ in CONSOLE if page.name not in ELSEWHERE and not is_run(command)]
    assert [command for command in left if not any(re.match(pattern, command) for pattern in NOT_RUN)] == []
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_are_valid_shell(page):
    script = "\n".join([*(command for command, _ in commands(page)), *blocks(page, "sh")])
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Serves until it gets SIGTERM, as `make serve` does; a gate that refuses is a release that fails.
MAKE = """#!/bin/bash
echo "$@" >> made
case $1 in serve) exec sleep 600;; release) exit $REFUSED;; evaluate) mkdir -p build/evaluate build/diff; esac
"""


@pytest.mark.parametrize("refused", [0, 1])
def test_the_gate_before_a_rollout_ends_as_the_release_does(tmp_path, refused):
    """And packs nothing that was refused."""
    (script,) = (block for block in blocks(PROJECT / "docs" / "production.md", "sh") if "EVALUATE=" in block)
    make = tmp_path / "make"
    make.write_text(MAKE, encoding="utf-8")
    make.chmod(0o755)
    (tmp_path / "artifacts").mkdir()
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {"PATH": path, "ARTIFACTS": str(tmp_path / "artifacts"), "REFUSED": str(refused)}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == bool(refused), done.stderr
    made = (tmp_path / "made").read_text(encoding="utf-8").splitlines()
    assert ("package" in made) == (not refused)
    assert {one.name for one in (tmp_path / "artifacts").iterdir()} == {"evaluate", "diff"}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_python_examples_compile(page):
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pytest.mark.server
def test_the_python_example_classifies(default_server):
    (code,) = blocks(PROJECT / "docs" / "contract.md", "python")
    code = code.replace("127.0.0.1:8001", default_server.grpc)
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.startswith("7 sports 0."), done.stdout + done.stderr


@pytest.mark.server
def test_the_evaluation_example_prints_what_is_shown(default_server, tmp_path, monkeypatch, capsys):
    page = PROJECT / "docs" / "quality.md"
    shown = next(shown for command, shown in commands(page) if command == "make evaluate FILE=examples/labelled.tsv")
    monkeypatch.setattr(quality, "EVALUATION", tmp_path / "build" / "evaluate")
    labelled = PROJECT / "examples" / "labelled.tsv"
    run_one_of(
        [quality.evaluate], ["evaluate", f"--file={labelled}", f"--grpc-port={default_server.address.grpc_port}"]
    )
    printed = capsys.readouterr().out
    assert matches(shown.replace("127.0.0.1:8001", default_server.grpc), printed), printed


@pytest.mark.server
@pytest.mark.parametrize(("command", "shown"), EXAMPLES)
def test_a_console_example_prints_what_is_shown(command, shown, default_server):
    """Fractions may differ by what a precision loses; a gap (…) matches anything."""
    ports = {"8000": default_server.address.http_port, "8001": default_server.address.grpc_port}
    for usual, port in ports.items():
        command = command.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{port}")
    if command.startswith("make "):
        _, target, *assignments = shlex.split(command)
        options = [f"--{name.lower()}={value}" for name, value in (part.split("=", 1) for part in assignments)]
        port = f"--grpc-port={ports['8001']}" if target == "classify" else f"--http-port={ports['8000']}"
        done = subprocess.run(
            [sys.executable, "-m", "build_scripts", target, *options, port], cwd=PROJECT, capture_output=True, text=True
        )
    else:
        done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert matches(shown, done.stdout), done.stdout


NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def matches(shown: str, printed: str) -> bool:
    """Whether both have the same words and integers, and fractions within 0.05."""
    pattern, wanted = "", []
    for piece in re.split(f"({NUMBER}{ANYTHING}?|{ANYTHING})", " ".join(shown.split())):
        number = re.fullmatch(f"({NUMBER}){ANYTHING}?", piece)
        if number:
            wanted.append(number.group(1))
            pattern += f"({NUMBER})" + ".*?" * piece.endswith(ANYTHING)
        else:
            pattern += ".*?" if piece == ANYTHING else re.escape(piece)
    found = re.fullmatch(pattern, " ".join(printed.split()))
    return found is not None and all(
        abs(float(one) - float(other)) <= 0.05 if "." in one else one == other
        for one, other in zip(wanted, found.groups())
    )


def test_matching_can_fail():
    assert matches("0 finance 0.7992", "0\tfinance\t0.8012\n")
    assert matches(
        '{"CLASS_ID":7,"PROBABILITIES":[0.0097…,0.01]…}', '{"CLASS_ID":7,"PROBABILITIES":[0.009,0.012],"x":1}'
    )
    assert not matches("0 finance 0.7992", "1\tfinance\t0.8012\n")
    assert not matches("0 finance 0.7992", "0\tsports\t0.8012\n")
    assert not matches("0 finance 0.7992", "0\tfinance\t0.2\n")
