"""How the supervisor starts servers again, and what it does when it is asked to stop."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.serving import run_state, supervisor
from build_scripts.serving.supervisor import MAX_FAILURES, Supervisor
from build_scripts.serving.triton import Installation, TritonProcess
from build_scripts.settings import Address
from tests.support.background import in_background
from tests.support.servers import wait_for

ENDS_WITHIN_S = 6.0
INSTALLATION = Installation(Path("tritonserver"), "a stand-in")


@pytest.fixture
def supervisor_of(tmp_path) -> Callable[[int], Supervisor]:
    """supervisor_of(http_port)"""

    def make(http_port: int) -> Supervisor:
        address, log = Address(http_port=http_port), tmp_path / "tritonserver.log"
        return Supervisor(INSTALLATION, tmp_path, tmp_path, address, log, threading.Event())

    return make


@pytest.fixture
def launched(monkeypatch, process, tmp_path) -> list[TritonProcess]:
    """The servers that `run` started, each of which does nothing; announcing one needs more than that."""
    servers = []

    def launch(*_) -> TritonProcess:
        servers.append(process("sleep", "60"))
        return servers[-1]

    monkeypatch.setattr(supervisor, "launch", launch)
    monkeypatch.setattr(supervisor, "listens", lambda *_: True)  # the stand-in's HTTP side is another process
    monkeypatch.setattr(supervisor, "require_release", lambda _: {"release": "0123456789ab"})
    monkeypatch.setattr(run_state, "BUILD", tmp_path)
    monkeypatch.setattr(Supervisor, "announce", lambda _: None)
    return servers


def test_nothing_is_started_after_a_stop(supervisor_of, launched):
    stopped = supervisor_of(free_ports(1)[0])
    run_state.run_directory(stopped.address.http_port).mkdir(parents=True)
    stopped.stop.set()
    assert stopped.run() == 0
    assert launched == []


@pytest.fixture
def waiting(supervisor_of, frontend, launched, monkeypatch) -> Iterator[tuple[Supervisor, Future]]:
    """A supervisor that waits a minute before it starts a server again, and its `run`."""
    said = []
    monkeypatch.setattr(supervisor, "say", said.append)
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 60.0)
    running = supervisor_of(frontend(200, 500).server_port)
    running.failures = MAX_FAILURES - 2
    run_state.run_directory(running.address.http_port).mkdir(parents=True)
    with in_background(running.run, stop=running.stop) as ending:
        reason = "inference fails: HTTP 500: stub is not healthy"
        wait_for(lambda: f"{reason}; restarting in 60 s" in said, ENDS_WITHIN_S, said)
        yield running, ending
    assert len(launched) == 1


def test_a_failed_server_is_gone_before_the_wait_for_a_restart(waiting, launched):
    wait_for(lambda: launched[0].poll() is not None, ENDS_WITHIN_S, "the failed server still runs")
    assert not waiting[1].done()


def test_a_stop_ends_the_wait_for_a_restart(waiting):
    running, ending = waiting
    running.stop.set()
    assert ending.result(ENDS_WITHIN_S) == 0


def test_another_servers_answer_is_not_ones_own(supervisor_of, frontend, process, monkeypatch):
    """It listens where ours was to; ours ends because of that, a moment later."""
    front = frontend(200)
    starting, server = supervisor_of(front.server_port), process("sleep", "1")
    assert starting.wait_until_ready(server).startswith("could not start: tritonserver ended with code 0")
    assert front.asked == 0


def test_a_process_that_dies_ends_the_wait_for_an_answer(supervisor_of, process):
    server = process("sh", "-c", "sleep 0.1 & exec sleep 60")
    assert "was killed" in supervisor_of(free_ports(1)[0]).wait_until_ready(server)
