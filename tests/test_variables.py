"""Variables: what is typed behind `make` arrives as it is, and nothing with a common name leaks in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import typer

from build_scripts.__main__ import app
from build_scripts.benchmarks.subprocesses import running
from build_scripts.convert.parity import calibration_texts
from build_scripts.core.options import VARIABLE_PREFIX
from build_scripts.core.paths import PROJECT
from build_scripts.core.text_files import read_lines
from tests.soak import soak

MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")
VARIABLES = " ".join(re.findall(r"^VARIABLES \+?:?= (.+)$", MAKEFILE, re.MULTILINE)).split()
COMMANDS = typer.main.get_command(app).commands


@dataclass
class Made:
    """What a `make` did. given: the environment of the command that it ran, empty if it ran none."""

    code: int
    stderr: str
    given: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def make(tmp_path):
    """make(*arguments, **environment): the real Makefile, with a Python that only writes its environment down."""
    venv, dump = tmp_path / "venv", tmp_path / "environment"
    foreign = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f"#!/bin/sh\nenv -0 > '{dump}'\n", encoding="utf-8")
    python.chmod(0o755)
    for name in ("installed", "installed-bench"):
        (venv / name).touch()

    def run(*arguments: str, **environment: str) -> Made:
        dump.unlink(missing_ok=True)
        command = ["make", f"VENV={venv}", *arguments]
        done = subprocess.run(
            command, cwd=PROJECT, env={**foreign, **environment}, capture_output=True, text=True, timeout=60
        )
        lines = dump.read_bytes().decode().split("\0")[:-1] if dump.exists() else []
        return Made(done.returncode, done.stderr, dict(line.split("=", 1) for line in lines))

    return run


@pytest.mark.parametrize("name", VARIABLES)
def test_a_value_reaches_the_command_as_it_was_typed(make, name, tmp_path):
    touched = tmp_path / "touched"
    typed = (
        f"price $500 $$ $(PATH) ${{PATH}} $(shell touch {touched}) `touch {touched}` $(error no); touch {touched} "
        "\"double\" 'single' # hash \\ back\\\\slash = := a  b % * ~ 股市 é\ttab\nnext line "
    )
    made = make("classify", f"{name}={typed}")
    assert (made.code, made.stderr) == (0, "")
    assert made.given[VARIABLE_PREFIX + name] == typed
    assert not touched.exists()
    assert name not in made.given
    assert "MAKEFLAGS" not in made.given or typed[:5] not in made.given["MAKEFLAGS"]


def test_the_environments_own_names_are_not_taken(make):
    made = make("serve", **dict.fromkeys(VARIABLES, "$(error leaked)"))
    assert made.code == 0
    leaked = {name: value for name, value in made.given.items() if "leaked" in value}
    assert leaked == {}
    # HOST is set by shells, and so it is not worth a word.
    names = " ".join(name for name in VARIABLES if name != "HOST")
    assert f"the environment's {names} is not used; write `make serve {names.split()[0]}=…`" in made.stderr
    assert make("serve", HOST="somewhere").stderr == ""


def test_a_variable_that_does_not_exist_is_refused(make):
    made = make("serve", "MODLE=./mine")
    assert (made.code, made.given) == (2, {})
    assert "MODLE: no such variable; there are MODEL " in made.stderr


def test_the_command_line_reads_no_common_names():
    """TEXT alone would be enough to classify."""
    environment = {**os.environ, **dict.fromkeys(VARIABLES, "leaked")}
    command = [sys.executable, "-m", "build_scripts", "classify"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "expected either TEXT" in done.stderr


def test_a_benchmarks_variables_do_not_reach_what_it_starts(tmp_path, monkeypatch):
    (tmp_path / "say_environment.py").write_text("import os\nprint(*sorted(os.environ))\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRITON_TC_MAX_LENGTH", "64")
    log = tmp_path / "log"
    with running("say_environment", [], log) as process:
        process.wait(30)
    assert "PYTHONPATH" in log.read_text(encoding="utf-8").split()
    assert "TRITON_TC_MAX_LENGTH" not in log.read_text(encoding="utf-8")


def test_a_soak_expects_what_it_asks_its_server_for(tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def start(module, arguments, log):
        raise Started(arguments)

    asked = []
    monkeypatch.setattr(soak, "BUILD", tmp_path)
    monkeypatch.setattr(soak, "build", lambda options: asked.append(options) or StubBuilt(options.max_length))
    monkeypatch.setattr(soak, "make_traffic", lambda model, max_length, *_: asked.append(max_length))
    monkeypatch.setattr(soak, "running", start)
    with pytest.raises(Started) as started:
        soak.soak("", 64, 30.0)
    arguments = started.value.args[0]
    assert (asked[0].max_length, asked[1]) == (64, 64)
    assert arguments[arguments.index("--max-length") + 1] == "64"


class StubBuilt:
    def __init__(self, max_length: int) -> None:
        self.manifest = {"max_length": max_length}


def test_every_file_of_texts_and_standard_input_have_the_same_lines(tmp_path):
    content = "LF\nCR LF\r\nlone\rCR\n\nform\ffeed\u2028\x85\ntwo\r\r\nlast"
    expected = ["LF", "CR LF", "lone\rCR", "", "form\ffeed\u2028\x85", "two\r", "last"]
    path = tmp_path / "texts.txt"
    path.write_bytes(content.encode())
    assert list(read_lines("FILE", str(path))) == expected
    assert calibration_texts(path)[: len(expected) - 1] == [line for line in expected if line]
    code = "from build_scripts.core.text_files import read_lines; print(list(read_lines('FILE', '-')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, input=content.encode(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.decode().strip()) == (0, str(expected)), done.stderr
