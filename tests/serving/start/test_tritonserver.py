"""The tritonserver that is run, its arguments and environment; obstacles are named in one line."""

import contextlib
import os
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep.server_log import last_error
from build_scripts.serving.start import installation
from build_scripts.serving.start.environment import threads, tuning
from build_scripts.serving.start.installation import (
    Installation,
    check_platform,
    embedded_wheel,
    find_installation,
    libpython_directory,
    prepare_backends,
)
from build_scripts.serving.start.tritonserver import METRICS_VARIABLE, OPTIONAL, known_arguments, launch


@pytest.mark.parametrize("name", ["libpython3.99.so.1.0", "libpython3.99.a", None])
def test_rejects_interpreter_without_shared_library(monkeypatch, tmp_path, name):
    (tmp_path / "libpython3.99.a").touch()
    monkeypatch.setattr(sysconfig, "get_config_var", {"INSTSONAME": name, "LIBDIR": str(tmp_path)}.get)
    with pytest.raises(ServingError, match=r"no shared libpython.*PYTHON=") as refusal:
        libpython_directory()
    assert "\n" not in str(refusal.value)


def test_finds_the_interpreters_shared_library(monkeypatch, tmp_path):
    (tmp_path / "libpython3.99.so.1.0").touch()
    config = {"INSTSONAME": "libpython3.99.so.1.0", "LIBDIR": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_config_var", config.get)
    assert libpython_directory() == tmp_path


@pytest.mark.parametrize(("system", "machine"), [("linux", "riscv64"), ("darwin", "x86_64")])
def test_rejects_platform_without_embedded_server(monkeypatch, tmp_path, system, machine):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(ServingError, match=f"Linux x86-64 and aarch64, this is {system} {machine}; .*PATH") as refusal:
        find_installation()
    assert "\n" not in str(refusal.value)


def test_rejects_read_only_project(monkeypatch, tmp_path):
    (tmp_path / "build").write_text("a file where the directory belongs")
    monkeypatch.setattr(installation, "BUILD", tmp_path / "build")
    with pytest.raises(ServingError, match=r"cannot be written \(.*\); .*may write to") as refusal:
        prepare_backends(embedded_wheel())
    assert "\n" not in str(refusal.value)


@pytest.fixture
def on_path(monkeypatch, tmp_path) -> Installation:
    """What is found where a program named tritonserver is on PATH; this one stops, to be looked at."""
    program = tmp_path / "tritonserver"
    program.write_text('#!/bin/sh\n[ "$1" = --help ] || kill -STOP $$\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return find_installation()


@contextlib.contextmanager
def launched(
    installation: Installation, address: Address, log: Path, names: Sequence[str] = (ENSEMBLE,)
) -> Iterator[psutil.Process]:
    server = launch(installation, [log.parent], address, "a key", log, names)
    try:
        yield psutil.Process(server.process.pid)
    finally:
        server.kill()


# Python 3.12 warns of what subprocess does to obey preexec_fn, if any thread runs; torch may have started some.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
def test_a_server_on_path_gets_nothing_of_the_embedded_one(on_path, tmp_path):
    assert (on_path.binary, on_path.arguments, on_path.environment) == (tmp_path / "tritonserver", [], {})
    assert str(on_path.binary) in on_path.description
    with launched(on_path, Address("127.0.0.1", *free_ports(3)), tmp_path / "log") as server:
        command, environment = server.cmdline(), server.environ()
    assert str(on_path.binary) in command
    assert not [argument for argument in command if argument.startswith(("--backend-directory", "--cache-directory"))]
    # By names alone: the values may be secrets, which are not to be shown when this fails.
    assert {name for name in environment if environment[name] != os.environ.get(name)} == {*tuning(), METRICS_VARIABLE}


def test_many_classifiers_share_two_threads_per_core(monkeypatch):
    monkeypatch.setattr("build_scripts.serving.start.environment.cores", lambda: 8)
    assert [threads(classifiers) for classifiers in (1, 2, 3, 8, 16, 17, 30)] == [8, 8, 5, 2, 1, 1, 1]


@forks
def test_threads_depend_on_the_number_of_classifiers(on_path, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("build_scripts.serving.start.environment.cores", lambda: 8)
    names = [ENSEMBLE, "sentiment", "topic"]
    with launched(on_path, Address("127.0.0.1", *free_ports(3)), tmp_path / "log", names) as server:
        assert server.environ()["OMP_NUM_THREADS"] == "5"


@forks
@pytest.mark.parametrize(("cores", "expected"), [(1, "1"), (2, "2"), (16, "16"), (64, "16")])
def test_at_most_16_threads_on_a_large_machine(monkeypatch, cores, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("build_scripts.serving.start.environment.cores", lambda: cores)
    assert tuning()["OMP_NUM_THREADS"] == expected


def test_one_core_means_one_thread():
    command = "from build_scripts.serving.start.environment import tuning; print(tuning()['OMP_NUM_THREADS'])"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=PROJECT,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1"]


def test_the_users_environment_wins_over_the_tuning(on_path, monkeypatch, tmp_path):
    name, *others = chosen = tuning()
    monkeypatch.setenv(name, "the user's")
    with launched(on_path, Address("127.0.0.1", *free_ports(3)), tmp_path / "log") as server:
        environment = server.environ()
    assert environment[name] == "the user's"
    assert others
    assert {other: environment[other] for other in others} == {other: chosen[other] for other in others}


@pytest.mark.parametrize("found", [("glibc", "2.34"), ("glibc", "2.9"), ("", "")])
def test_rejects_older_or_other_c_library(monkeypatch, tmp_path, found):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "libc_ver", lambda: found)
    with pytest.raises(ServingError, match=rf"needs glibc 2\.35, this is .*{found[1]}; .*RHEL 9") as refusal:
        find_installation()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_accepts_both_processors(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.35"))
    check_platform()


@pytest.mark.parametrize(
    ("told", "passed"),
    [
        ("  --http-port <integer>\n  --allow-sagemaker <boolean>\n", ["--allow-sagemaker=false"]),
        ("  --http-port <integer>\n", []),
        ("", [*OPTIONAL]),
    ],
    ids=["with SageMaker", "without any", "that tells nothing"],
)
def test_a_server_gets_only_options_that_it_knows(tmp_path, told, passed):
    program = tmp_path / "tritonserver"
    program.write_text(f"#!/bin/sh\nprintf '{told}'\n")
    program.chmod(0o755)
    assert known_arguments(Installation(program, "")) == passed


def test_the_embedded_server_knows_every_option_that_it_gets():
    assert known_arguments(find_installation()) == [*OPTIONAL]


def test_an_unknown_option_is_the_reason_for_an_end(tmp_path):
    """Triton prints its usage after it."""
    log = tmp_path / "log"
    log.write_text("bin/tritonserver: unrecognized option '--allow-vertex-ai=false'\nUsage: tritonserver [options]\n")
    assert "unrecognized option '--allow-vertex-ai=false'" in last_error(log)
