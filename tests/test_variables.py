"""Variables of make arrive as they were typed; the environment's own names are not used."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from build_scripts.__main__ import COMMANDS
from build_scripts.benchmarks.subprocesses import running
from build_scripts.convert.gate_texts import calibration_texts
from build_scripts.core.command_line import refuse_unknown_variables, run
from build_scripts.core.options import INSTALL_VARIABLES, OPTIONS, VARIABLE_PREFIX
from build_scripts.core.paths import PROJECT
from build_scripts.core.text_files import read_lines
from tests.soak import soak
from tests.soak.__main__ import soak as soak_command
from tests.support.waiting import HANG_S

VARIABLES = [option.variable for option in OPTIONS.values()]


@dataclass
class Made:
    """The outcome of a `make`. given: environment of the command that it ran, empty if it ran none."""

    code: int
    stdout: str
    stderr: str
    given: dict[str, str] = field(default_factory=dict)


@pytest.fixture
def make(tmp_path):
    """make(*arguments, **environment): the real Makefile, with a Python that only writes its environment to a file."""
    venv, dump = tmp_path / "venv", tmp_path / "environment"
    foreign = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f"#!/bin/sh\nenv -0 > '{dump}'\n", encoding="utf-8")
    python.chmod(0o755)
    (venv / "installed").touch()

    def run(*arguments: str, **environment: str) -> Made:
        dump.unlink(missing_ok=True)
        command = ["make", f"VENV={venv}", *arguments]
        done = subprocess.run(
            command, cwd=PROJECT, env={**foreign, **environment}, capture_output=True, text=True, timeout=HANG_S
        )
        lines = dump.read_bytes().decode().split("\0")[:-1] if dump.exists() else []
        return Made(done.returncode, done.stdout, done.stderr, dict(line.split("=", 1) for line in lines))

    return run


@pytest.mark.parametrize("name", VARIABLES)
def test_a_value_arrives_as_it_was_typed(make, name, tmp_path):
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
    assert [name for name in made.given if name.startswith(VARIABLE_PREFIX + "TEXT")] == []


def test_an_unknown_variable_is_handed_on_and_refused(make, monkeypatch, capsys):
    assert make("serve", "MODLE=./mine").given["TRITON_TC_MODLE"] == "./mine"
    monkeypatch.setenv("TRITON_TC_MODLE", "./mine")
    assert run(COMMANDS["status"], []) == 1
    assert capsys.readouterr().err.startswith("error: MODLE: no such variable; there are MODEL ")


def test_variables_of_the_installation_are_not_refused(monkeypatch):
    for name in INSTALL_VARIABLES:
        monkeypatch.setenv(VARIABLE_PREFIX + name, "x")
    refuse_unknown_variables()


def test_every_variable_belongs_to_a_command():
    used = {name for command in (*COMMANDS.values(), soak_command) for name in command.variables}
    assert used == set(VARIABLES)


def test_the_command_line_reads_no_common_names():
    """TEXT alone would be enough to classify. HOST is set by shells, and not worth a line."""
    environment = {**os.environ, **dict.fromkeys(VARIABLES, "leaked")}
    command = [sys.executable, "-m", "build_scripts", "classify"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=HANG_S)
    hint, error = done.stderr.splitlines()
    names = " ".join(name for name in COMMANDS["classify"].variables if name != "HOST")
    assert hint == f"the environment's {names} is not used; write `make classify TEXT=…`"
    assert done.returncode == 1
    assert error.startswith("error: expected either TEXT")


@pytest.mark.parametrize("target", ["classify", "health", "doctor", "status", "release", "rollback"])
def test_to_ask_a_running_server_installs_nothing(make, target):
    """Not even after a change of the pins: the server may have to start again from the environment as it is."""
    done = make(target, "--dry-run", "--what-if=pyproject.toml")
    assert "install.sh" not in done.stdout
    assert f"build_scripts {target}" in done.stdout
    assert "install.sh" in make("serve", "--dry-run", "--what-if=pyproject.toml").stdout


@pytest.mark.parametrize("named", ["the program", "its directory", "by PATH"])
def test_test_server_puts_the_named_server_first_on_path(make, tmp_path, named):
    program = tmp_path / "a server" / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    (tmp_path / "venv" / "installed-dev").touch()
    if named == "by PATH":
        made = make("test-server", PATH=f"{program.parent}:{os.environ['PATH']}")
    else:
        made = make("test-server", f"TRITONSERVER={program if named == 'the program' else program.parent}")
    assert made.code == 0, made.stderr
    assert made.given["PATH"].split(":")[0] == str(program.parent)


def test_test_server_refuses_what_is_no_tritonserver(make, tmp_path):
    (tmp_path / "venv" / "installed-dev").touch()
    for path in (tmp_path, tmp_path / "venv" / "bin" / "python"):
        made = make("test-server", f"TRITONSERVER={path}")
        assert made.code == 2
        assert "is no tritonserver; name the program or its directory" in made.stderr
        assert made.given == {}


def test_without_an_environment_to_ask_names_the_command_that_makes_one(tmp_path):
    command = ["make", f"VENV={tmp_path}/none", "health"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 2
    assert f"error: {tmp_path}/none is missing; run `make install` first" in done.stderr


def test_a_benchmark_keeps_its_variables_from_its_processes(tmp_path, monkeypatch):
    (tmp_path / "say_environment.py").write_text("import os\nprint(*sorted(os.environ))\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRITON_TC_MAX_LENGTH", "64")
    log = tmp_path / "log"
    with running("say_environment", [], log) as process:
        process.wait(HANG_S)
    assert "PYTHONPATH" in log.read_text(encoding="utf-8").split()
    assert "TRITON_TC_MAX_LENGTH" not in log.read_text(encoding="utf-8")


def test_a_soak_and_its_server_have_the_same_max_length(tmp_path, monkeypatch):
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


def test_files_and_stdin_have_the_same_lines(tmp_path):
    content = "LF\nCR LF\r\nlone\rCR\n\nform\ffeed\u2028\x85\ntwo\r\r\nlast"
    expected = ["LF", "CR LF", "lone\rCR", "", "form\ffeed\u2028\x85", "two\r", "last"]
    path = tmp_path / "texts.txt"
    path.write_bytes(content.encode())
    assert list(read_lines("FILE", str(path))) == expected
    assert calibration_texts(path) == [line for line in expected if line]
    code = "from build_scripts.core.text_files import read_lines; print(list(read_lines('FILE', '-')))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PROJECT, input=content.encode(), capture_output=True, timeout=HANG_S)
    assert (done.returncode, done.stdout.decode().strip()) == (0, str(expected)), done.stderr
