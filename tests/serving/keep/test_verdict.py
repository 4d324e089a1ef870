"""The supervisor's verdict, as probes read it."""

from __future__ import annotations

import errno
import os
import time

import pytest

from build_scripts.core.paths import BUILD
from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.run_directory import held, run_directory
from build_scripts.serving.keep.verdict import READY, SIZE, STALE_S, VERDICT_FILE, VerdictFile, read

HOST = "127.0.0.1"


def test_directories_are_those_of_the_project(monkeypatch):
    monkeypatch.undo()
    assert str(BUILD / "serve") == verdict.RUNS


@pytest.mark.parametrize("host", [HOST, "localhost"])
def test_verdict_is_read_while_its_supervisor_lives(port, host):
    with held(port):
        VerdictFile(port, HOST).tell(READY, "inference answers")
        assert read(host, str(port)) == (READY, "inference answers")
    assert read(host, str(port)) is None
    assert not (run_directory(port) / VERDICT_FILE).exists()


def test_verdict_without_its_supervisor_is_not_believed(port):
    with held(port):
        pass
    VerdictFile(port, HOST).tell(READY)
    assert read(HOST, str(port)) is None


def test_another_host_is_another_server(port):
    with held(port):
        VerdictFile(port, "192.0.2.7").tell(READY)
        assert read(HOST, str(port)) is None
        assert read("192.0.2.7", str(port)) == (READY, "")


def test_supervisor_that_hangs_is_not_believed(port):
    with held(port) as directory:
        told = VerdictFile(port, HOST)
        told.tell(READY)
        os.utime(directory / VERDICT_FILE, (time.time() - 2 * STALE_S,) * 2)
        assert read(HOST, str(port)) is None
        told.tell(READY)
        assert read(HOST, str(port)) == (READY, "")


def test_shorter_verdict_replaces_a_longer_one(port):
    with held(port):
        told = VerdictFile(port, HOST)
        told.tell(READY, "x" * 2 * SIZE)
        assert len(read(HOST, str(port))[1]) > SIZE / 2
        told.tell(READY, "y")
        assert read(HOST, str(port)) == (READY, "y")


def test_full_disk_ends_nobody(port, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with held(port):
        monkeypatch.setattr(os, "pwrite", full)
        VerdictFile(port, HOST).tell(READY)
        assert read(HOST, str(port)) is None


def test_file_system_without_locks_leaves_the_heartbeat(port, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with held(port):
        VerdictFile(port, HOST).tell(READY)
        monkeypatch.setattr(verdict.fcntl, "flock", unsupported)
        assert read(HOST, str(port)) == (READY, "")
        monkeypatch.undo()
