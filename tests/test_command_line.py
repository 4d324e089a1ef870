"""Every command explains itself, quickly, and every make target is listed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest

from build_scripts import __version__
from build_scripts.__main__ import COMMANDS
from build_scripts.core.command_line import USAGE, command, run_one_of
from build_scripts.core.command_line import run as run_command
from build_scripts.core.options import OPTIONS, VARIABLE_PREFIX
from build_scripts.core.paths import PROJECT
from build_scripts.releases.commands import ASSEMBLED
from tests.support.waiting import HANG_S

MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
TARGETS = dict(re.findall(r"^([a-z-]+):.*?## (.+)$", MAKEFILE, re.MULTILINE))
each_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=HANG_S)


def test_there_are_commands_and_targets():
    assert {"repo", "serve", "classify", "health"} <= set(COMMANDS)
    assert {"repo", "serve", "classify", "health", "test", "lint", "help"} <= set(TARGETS)


@each_command
def test_help_says_what_a_command_does_and_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_one_of(COMMANDS.values(), [command.name, "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"Example: python -m build_scripts {command.name}\b", text)
    assert all(OPTIONS[field.name].flag in text for field in command.fields)
    assert len(command.help.split()) >= 4


@each_command
def test_an_example_uses_only_options_that_exist(command):
    options = {OPTIONS[field.name].flag for field in command.fields}
    assert set(re.findall(r"(?<=\s)--[\w-]+", command.example)) <= options


@each_command
def test_an_unknown_option_is_refused(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_one_of(COMMANDS.values(), [command.name, "--no-such-option"])
    assert exit_.value.code == USAGE
    assert re.match(r"error: .*--no-such-option.*\n$", capsys.readouterr().err)


def test_an_unknown_command_is_refused_with_those_that_exist(capsys):
    assert run_one_of(COMMANDS.values(), ["sevre"]) == USAGE
    assert capsys.readouterr().err.startswith("error: sevre: no such command; there are repo, package, serve")


def test_the_version_is_printed(capsys):
    assert run_one_of(COMMANDS.values(), ["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("command", "variable", "value", "said"),
    [
        ("health", "HTTP_PORT", "abc", "HTTP_PORT=abc: expected a whole number"),
        ("health", "HTTP_PORT", "99999", "HTTP_PORT=99999 is no port; expected a number from 1 to 65535"),
        ("health", "TIMEOUT", "-1", "TIMEOUT=-1: expected 0 or more"),
        ("health", "LIVE", "perhaps", "LIVE=perhaps: expected 1 or 0"),
        ("serve", "DRAIN", "nan", "DRAIN=nan: expected 0 or more"),
        ("tune", "SECONDS_PER_LEVEL", "soon", "SECONDS_PER_LEVEL=soon: expected a number"),
    ],
)
def test_rejects_bad_value_in_one_line(command, variable, value, said, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE_PREFIX + variable, value)
    assert run_command(COMMANDS[command], []) == 1
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_flag_wins_over_its_variable_and_an_empty_variable_means_the_default(monkeypatch):
    monkeypatch.setenv("TRITON_TC_HTTP_PORT", "9000")
    monkeypatch.setenv("TRITON_TC_TIMEOUT", "")
    monkeypatch.setenv("TRITON_TC_LIVE", "1")
    health = COMMANDS["health"]
    assert health.arguments("", []) == {
        "url": "",
        "host": "127.0.0.1",
        "http_port": 9000,
        "timeout": 2.0,
        "live": True,
        "name": "",
    }
    assert health.arguments("", ["--http-port", "9001"])["http_port"] == 9001


def test_an_interrupted_command_prints_no_traceback(capsys):
    @command("an example")
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_command(interrupted, []) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone_ends_a_command_quietly():
    code = """
from build_scripts.core.command_line import command, run
@command("an example")
def much() -> None:
    for _ in range(100_000):
        print("a line")
raise SystemExit(run(much, []))
"""
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -1"
    done = run("bash", "-c", f"set -o pipefail; {shell}")
    assert (done.returncode, done.stdout, done.stderr) == (1, "a line\n", "")


def test_help_loads_nothing_heavy():
    heavy = "torch", "transformers", "tokenizers", "numpy", "tritonclient", "rich.table", "huggingface_hub"
    code = f"""
import runpy, sys
sys.argv = ["build_scripts", "--help"]
try:
    runpy.run_module("build_scripts", run_name="__main__")
except SystemExit as exit_:
    assert exit_.code == 0, exit_.code
print("loaded:", [name for name in {heavy!r} if name in sys.modules])
"""
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("loaded: []\n")
    assert all(command in done.stdout for command in COMMANDS)


def test_make_lists_every_target_with_its_help():
    assert TARGETS
    for arguments in ((), ("help",)):
        listed = dict(re.findall(r"^  make ([a-z-]+) +(.+)$", run("make", *arguments).stdout, re.MULTILINE))
        assert listed == TARGETS


def test_clean_leaves_only_sources(tmp_path):
    sources = ["Makefile", "model_repository/classifier/config.pbtxt", "model_repository/text_classifier/config.pbtxt"]
    built = [
        "build/report.md",
        ".venv/installed",
        "model_repository/.build.lock",
        f"model_repository/{ASSEMBLED}/classifier/config.pbtxt",
        "model_repository/text_classifier/releases/history",
        "model_repository/sentiment/config.pbtxt",
        "model_repository/sentiment/config.pbtxt.copied",
        "model_repository/sentiment/releases/history",
    ]
    for file in [*sources, *built]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(MAKEFILE if file == "Makefile" else "", encoding="utf-8")
    assert run("make", "-C", str(tmp_path), "clean").returncode == 0
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(sources)


def test_every_phony_target_has_a_help_line():
    phony = " ".join(re.findall(r"^\.PHONY: (\w.*)$", MAKEFILE, re.MULTILINE)).split()
    assert sorted(phony) == sorted(TARGETS)


def test_targets_run_existing_commands():
    run_by_make = set(re.findall(r"\$\((?:RUN|ASK)\) (\w+)", MAKEFILE))
    assert run_by_make == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected either TEXT"),
        (["--text", "a", "--file", "b"], "expected either TEXT"),
        (["--file", "/no/such/file"], "FILE=/no/such/file: No such file"),
        (["--file", "{}/latin-1.txt"], "latin-1.txt: line 1 is not UTF-8 (at byte 4)"),
        (["--file", "-"], "FILE=-: line 1 is not UTF-8 (at byte 4)"),
        (["--text", b"\xff"], "U+DCFF at 0"),
    ],
)
def test_classify_rejects_bad_input_in_one_line(tmp_path, arguments, said):
    latin = "Café\n".encode("latin-1")
    (tmp_path / "latin-1.txt").write_bytes(latin)
    arguments = [part.format(tmp_path) if isinstance(part, str) else part for part in arguments]
    command = [sys.executable, "-m", "build_scripts", "classify", *arguments, "--grpc-port", "9"]
    done = subprocess.run(command, cwd=PROJECT, input=latin, capture_output=True, timeout=HANG_S)
    message = done.stderr.decode()
    assert (done.returncode, message.count("\n")) == (1, 1), message
    assert said in message


def test_serve_needs_only_the_packages_of_the_embedded_image():
    """To serve a package takes neither a build nor a client."""
    code = """
import runpy, sys
sys.modules.update(dict.fromkeys(["tritonclient", "google", "grpc", "tokenizers", "transformers", "sentencepiece"]))
sys.argv = ["build_scripts", "serve", "--http-port", "99999"]
runpy.run_module("build_scripts", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "99999" in done.stderr
    assert "No module" not in done.stderr
    assert "Traceback" not in done.stderr
