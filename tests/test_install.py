"""`make install`: the choice of Python and of torch's index, pins, failures. Downloads nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from build_scripts.core.paths import PROJECT
from tests.support.waiting import HANG_S, wait_for

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What makes this interpreter look like another one to the script.
OTHER = {
    "fits": "pass",
    "too new": "sys.version_info = (3, 13, 0)",
    "too old": "sys.version_info = (3, 6, 15)",
    "no venv": "sys.modules['venv'] = None",
    "virtualenv only": "sys.modules['ensurepip'] = None; sys.modules['virtualenv'] = sys",
    "no libpython": "import sysconfig; sysconfig.get_config_var = lambda name: 'libpython3.11.a'",
    "broken": "sys.exit(1)",
}
TOOLS = (
    "sh",
    "sed",
    "tail",
    "timeout",
    "mkdir",
    "cp",
    "sleep",
    "tr",
    "grep",
    "paste",
    "flock",
    "touch",
    "cat",
    "rm",
    "mv",
)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass
class Machine:
    """A PATH of stand-ins. Each of them writes how it was called, and with which variables of pip and uv, to a log."""

    bin: Path
    log: Path
    venv: Path
    install: Path

    def script(self, name: str, body: str) -> Path:
        path = self.bin / name
        told = "${0##*/} $* PIP_INDEX_URL=$PIP_INDEX_URL MIRROR=$UV_PYTHON_INSTALL_MIRROR"
        path.write_text(f'#!/bin/sh\n[ "$1" = - ] || echo "{told}" >>{self.log}\n{body}', encoding="utf-8")
        path.chmod(0o755)
        return path

    def python(self, name: str, kind: str = "fits") -> Path:
        """kind: one of OTHER. The environments that it makes have "in-venv" for a Python."""
        return self.script(
            name,
            f"""case "$1" in
  -) exec {sys.executable} -c "import sys; {OTHER[kind]}; exec(sys.stdin.read())" ;;
  -c) exec {sys.executable} -c "import sys; {OTHER[kind]}; $2" ;;
  --version) echo Python 3.x ;;
  -m) for last; do :; done; mkdir -p "$last/bin" && cp {self.bin}/in-venv "$last/bin/python" ;;
esac
""",
        )

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = {"PATH": str(self.bin), "HOME": str(self.bin), **variables}
        command = ["sh", str(self.install), str(self.venv), *arguments]
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **variables)
        output, errors = process.communicate(timeout=HANG_S)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def calls(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def chosen(self) -> str:
        """The Python that made the environment."""
        return next((line.split()[0] for line in self.calls().splitlines() if " -m venv --clear " in line), "none")


@pytest.fixture
def machine(tmp_path) -> Machine:
    """No Python, no uv, no GPU, and an index for torch's CPU build that answers."""
    # A copy, because the script is what is locked.
    install = Path(shutil.copy(PROJECT / "build_scripts" / "install.sh", tmp_path))
    found = Machine(tmp_path / "bin", tmp_path / "log", tmp_path / "venv", install)
    found.bin.mkdir()
    for tool in TOOLS:
        (found.bin / tool).symlink_to(shutil.which(tool))
    found.script("find", "").write_text("#!/bin/sh\n", encoding="utf-8")
    found.script("in-venv", "")
    return found


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"python3": "fits", "python3.12": "fits"}, "python3"),
        ({"python3": "too new", "python3.12": "fits", "python3.10": "fits"}, "python3.12"),
        ({"python3": "no venv", "python3.12": "no libpython", "python3.10": "fits"}, "python3.10"),
        ({"python3": "too old", "python3.11": "fits"}, "python3.11"),
        ({"python3": "broken", "python3.11": "fits"}, "python3.11"),
    ],
)
def test_takes_the_first_python_that_fits(machine, there, chosen):
    for name, kind in there.items():
        machine.python(name, kind)
    done = machine.run()
    assert (done.returncode, machine.chosen()) == (0, chosen), done.stderr
    assert (machine.venv / "made-with").read_text(encoding="utf-8").endswith(f"/{chosen}\n")


def test_takes_a_named_python_or_says_why_not(machine):
    machine.python("python3")
    machine.python("my python", "fits")
    machine.python("other", "no libpython")
    done = machine.run(TRITON_TC_PYTHON="other")
    assert (done.returncode, machine.chosen()) == (1, "none")
    assert done.stderr == (
        "error: PYTHON=other has no shared libpython; "
        "Python 3.10 to 3.12 with its venv module and a shared libpython is needed\n"
    )
    named = str(machine.bin / "my python")
    assert machine.run(TRITON_TC_PYTHON=named).returncode == 0
    assert (machine.venv / "made-with").read_text(encoding="utf-8") == f"{named}\n"


def test_needs_no_libpython_with_a_server_on_path(machine):
    machine.python("python3", "no libpython")
    machine.script("tritonserver", "")
    assert machine.run().returncode == 0
    assert machine.chosen() == "python3"


def test_uv_gets_a_python_where_none_fits(machine):
    machine.python("python3", "too new")
    theirs = machine.python("from-uv")
    machine.script("uv", f'[ "$2" = install ] || echo {theirs}\n')
    done = machine.run(UV_PYTHON_INSTALL_MIRROR="https://mirror.example")
    assert (done.returncode, machine.chosen()) == (0, "from-uv"), done.stderr
    assert "No fitting Python here (python3 is 3.13.0): getting Python 3.12 through uv." in done.stderr
    assert "uv python install --no-progress 3.12 PIP_INDEX_URL= MIRROR=https://mirror.example" in machine.calls()


def test_uv_comes_from_the_package_index(machine):
    """In a separate environment, in the pinned version."""
    machine.python("python3", "too new")
    theirs = machine.python("from-uv")
    uv = machine.script("uv-from-pip", f'[ "$2" = install ] || echo {theirs}\n')
    machine.script("in-venv", f'case "$*" in *uv==*) cp {uv} {machine.venv}-uv/bin/uv ;; esac\n')
    done = machine.run(TRITON_TC_INDEX_URL="https://index.example/simple")
    assert (done.returncode, machine.chosen()) == (0, "from-uv"), done.stderr
    pin = next(one for one in group("dev") if one.name == "uv")
    assert f"pip install --quiet {pin} PIP_INDEX_URL=https://index.example/simple" in machine.calls()


def test_names_the_choices_without_any_python(machine):
    machine.script("uv", "echo 'error: no'; echo '  cause: no route to host'; exit 2\n")
    done = machine.run()
    assert (done.returncode, machine.chosen()) == (1, "none")
    first, second, last = done.stderr.splitlines()
    assert "none at all" in first
    assert second == "uv could not get it: no route to host"
    for word in ("error:", "python3.12-venv", "PYTHON=", "install uv", "UV_PYTHON_INSTALL_MIRROR"):
        assert word in last


def test_says_that_uv_needs_venv(machine):
    """Debian and Ubuntu without python3-venv."""
    machine.script("python3", 'case "$1" in -) echo "has no venv module" ;; *) exit 1 ;; esac\n')
    done = machine.run()
    assert (done.returncode, machine.chosen()) == (1, "none")
    assert done.stderr.splitlines()[1].endswith("(Debian, Ubuntu: python3-venv)")


def torch_call(machine: Machine) -> str:
    return next(line for line in machine.calls().splitlines() if "--editable" in line)


def test_without_a_gpu_torch_comes_from_the_cpu_index(machine):
    machine.python("python3")
    assert machine.run().returncode == 0
    assert f"--extra-index-url {CPU_INDEX} --editable . " in torch_call(machine)


@pytest.mark.parametrize("answer", ["exit 1", "sleep 30"], ids=["refused", "silent"])
def test_leaves_out_a_silent_index_and_names_the_size(machine, answer):
    machine.python("python3")
    machine.script("in-venv", f'case "$1" in -c) {answer} ;; esac\n')
    done = machine.run()
    assert done.returncode == 0
    assert "--extra-index-url" not in machine.calls()
    assert "GB; TORCH_INDEX=<address>" in done.stderr


def test_with_a_gpu_torch_comes_from_pips_index(machine):
    machine.python("python3")
    machine.script("find", "echo /dev/nvidia0\n")
    done = machine.run()
    assert "--extra-index-url" not in machine.calls()
    assert "TORCH_INDEX" not in done.stderr


def test_a_named_index_is_used(machine):
    machine.python("python3")
    done = machine.run(TRITON_TC_TORCH_INDEX="https://a.example/whl", TRITON_TC_INDEX_URL="https://b.example/simple")
    assert done.returncode == 0
    assert "--extra-index-url https://a.example/whl --editable" in torch_call(machine)
    assert "PIP_INDEX_URL=https://b.example/simple" in torch_call(machine)
    assert CPU_INDEX not in machine.calls()  # PyTorch's own was not asked for


def test_serving_comes_without_the_tools_of_development(machine):
    machine.python("python3")
    machine.run()
    assert "--group embedded" in machine.calls()
    assert not [name for name in ("dev", "bench", "tune") if f"--group {name}" in machine.calls()]
    needed = {Requirement(line).name for line in PYPROJECT["project"]["dependencies"]}
    assert not needed & {"pytest", "ruff", "mypy", "ipykernel", "uvloop"}
    assert "uvloop" in {one.name for one in group("tune")}


@pytest.mark.parametrize("call", ["*pip==*", "*--editable*", "*embedded*"])
def test_a_failed_installation_leaves_the_environment_as_it_was(machine, call):
    """A server that runs from it may have to start again."""
    machine.python("python3")
    assert machine.run().returncode == 0
    (machine.venv / "bin" / "mine").touch()
    machine.script("in-venv", f'case "$*" in {call}) exit 1 ;; esac\n')
    failed = machine.run()
    assert failed.returncode == 1
    assert failed.stderr.endswith(f"error: the installation failed; {machine.venv} is as it was\n")
    assert (machine.venv / "bin" / "mine").exists()
    assert (machine.venv / "installed").exists()
    assert sorted(path.name for path in machine.venv.parent.glob("venv*")) == ["venv"]


def test_a_new_environment_takes_the_place_of_the_old_one_when_it_is_complete(machine):
    machine.python("python3")
    assert machine.run().returncode == 0
    (machine.venv / "bin" / "mine").touch()
    there = f"[ -e {machine.venv}/bin/mine ] || exit 1\n"
    machine.script("in-venv", f'case "$1" in -m) {there};; esac\n')
    assert machine.run().returncode == 0
    assert not (machine.venv / "bin" / "mine").exists()
    assert sorted(path.name for path in machine.venv.parent.glob("venv*")) == ["venv"]


def test_without_ensurepip_virtualenv_makes_the_environment(machine):
    """As in NVIDIA's container."""
    machine.python("python3", "virtualenv only")
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert "python3 -m virtualenv --clear" in machine.calls()


@pytest.mark.parametrize("arguments", [(), ("bench",)])
def test_everything_is_installed_under_the_constraints(machine, arguments):
    machine.python("python3")
    machine.run()
    assert machine.run(*arguments).returncode == 0
    installs = [line for line in machine.calls().splitlines() if "pip install" in line]
    free = [line for line in installs if "--constraint constraints.txt" not in line and "--no-deps" not in line]
    assert all(" pip==" in line for line in free), free


@pytest.mark.parametrize(("end", "made"), [("exit 0", 1), ("exit 1", 2)], ids=["and it succeeds", "and it fails"])
def test_a_second_installation_waits_for_the_first(machine, end, made):
    """If the first fails, the second installs."""
    machine.python("python3")
    began, go_on = machine.bin / "began", machine.bin / "go-on"
    # The first to come here waits; the next finds `began`.
    wait = f"[ -e {began} ] || {{ touch {began}; while [ ! -e {go_on} ]; do sleep 0.02; done; {end}; }}"
    machine.script("in-venv", f'case "$*" in *--editable*) {wait} ;; esac\n')
    first = machine.start()
    wait_for(began.exists, "the first does not install")
    second = machine.start()
    assert second.stderr is not None
    assert second.stderr.readline() == "Another make installs here; waiting for it.\n"
    go_on.touch()
    first.communicate(timeout=HANG_S)
    second.communicate(timeout=HANG_S)
    assert (first.returncode, second.returncode) == (int(end[-1]), 0)
    assert machine.calls().count(" -m venv --clear ") == made
    assert (machine.venv / "installed").exists()


def test_another_python_makes_another_environment(tmp_path):
    environment = tmp_path / "venv"
    environment.mkdir()
    (environment / "made-with").write_text("/usr/bin/other-python\n", encoding="utf-8")
    (environment / "installed").touch()

    def would_make(*arguments: str) -> bool:
        command = ["make", "--dry-run", "install", f"VENV={environment}", *arguments]
        return (
            "install.sh" in subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=HANG_S).stdout
        )

    assert not would_make()
    assert not would_make("PYTHON=/usr/bin/other-python")
    assert would_make(f"PYTHON={sys.executable}")


PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = [
    Requirement(line)
    for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def group(name: str) -> list[Requirement]:
    """A group's own packages, without those of the groups that it includes."""
    return [Requirement(line) for line in PYPROJECT["dependency-groups"][name] if isinstance(line, str)]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_every_direct_pin_is_in_the_constraints_of_every_python(python):
    """If it is not, run `make lock`. The group "embedded" is installed without dependencies, and so pins all it has."""
    names = [name for name in PYPROJECT["dependency-groups"] if name != "embedded"]
    direct = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    direct += [requirement for name in names for requirement in group(name)]
    here = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}

    def applies(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(here)

    pinned = {one.name: str(one.specifier) for one in CONSTRAINTS if applies(one)}
    asked = {one.name: str(one.specifier) for one in direct if applies(one)}
    assert {"torch", "transformers", "pytest", "matplotlib"} <= set(asked)
    assert {name: pinned.get(name) for name in asked} == asked
    assert len(pinned) > len(asked) + 30
