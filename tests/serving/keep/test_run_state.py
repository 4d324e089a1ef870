"""One supervisor per run directory, and a state that is valid only while its supervisor lives."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep import run_directory
from build_scripts.serving.keep.run_directory import STATE_FILE, held
from build_scripts.serving.keep.run_state import RunState, read_state, write_state

STATE = RunState(
    os.getpid(),
    "http://127.0.0.1:9",
    "127.0.0.1:9",
    "repository",
    "staging",
    "log",
    {"text_classifier": "0123"},
    "a key",
)


def test_state_is_read_while_its_supervisor_lives(port):
    with held(port):
        write_state(port, STATE)
        assert read_state(port) == STATE
    with pytest.raises(ServingError, match=f"no server of `make serve` runs on HTTP_PORT={port}"):
        read_state(port)
    assert not (run_directory.run_directory(port) / STATE_FILE).exists()


def test_state_without_its_supervisor_is_not_believed(port):
    """Although a process with its id lives: ids are used again."""
    with held(port):
        pass
    write_state(port, STATE)
    with pytest.raises(ServingError, match="no server of `make serve` runs"):
        read_state(port)


def test_new_supervisor_removes_the_old_state(port):
    with held(port):
        pass
    write_state(port, STATE)
    with held(port), pytest.raises(ServingError, match="no server of `make serve` runs"):
        read_state(port)


@pytest.fixture
def holder(port, runs) -> Iterator[subprocess.Popen]:
    """Another process that holds the directory."""
    code = f"""
import sys, time
from build_scripts.serving.keep import run_directory, verdict
verdict.RUNS = {runs!r}
with run_directory.held({port}):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_supervisor_is_refused_in_one_line(port, holder):
    with pytest.raises(ServingError, match=f"HTTP_PORT={port} is served already, by process {holder.pid};") as refusal:
        held(port).__enter__()
    assert "\n" not in str(refusal.value)


def test_killed_supervisor_frees_the_port(port, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with held(port):
        write_state(port, STATE)
        assert read_state(port) == STATE


def test_directory_is_private(port):
    old = os.umask(0)
    try:
        with held(port) as directory:
            write_state(port, STATE)
            modes = {path.name: path.stat().st_mode & 0o077 for path in (directory, directory / STATE_FILE)}
    finally:
        os.umask(old)
    assert set(modes.values()) == {0}, modes


def test_unusable_directory_is_one_clear_line(port, runs):
    Path(runs).write_text("a file in the directory's place")
    with pytest.raises(ServingError, match=r"cannot be used \(.*\).*expected a directory") as refusal:
        held(port).__enter__()
    assert "\n" not in str(refusal.value)


def test_file_system_without_locks_is_used_without_them(port, monkeypatch, capsys):
    """NFS without lockd, Lustre without -o flock."""
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    with held(port):
        write_state(port, STATE)
        assert read_state(port) == STATE
    assert capsys.readouterr().err.count("has no locks (No locks available)") == 1
    with pytest.raises(ServingError, match="no server of `make serve` runs"):
        read_state(port)
