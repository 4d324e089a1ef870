"""How the supervisor starts servers again, and what it does when it is asked to stop."""

import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.options import Address
from build_scripts.serving.keep import health, run_directory, run_state, supervisor
from build_scripts.serving.keep.processes import broken_process
from build_scripts.serving.keep.server_log import last_error
from build_scripts.serving.keep.supervisor import MAX_FAILURES, Supervisor
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.tritonserver import TritonProcess
from tests.support.background import in_background
from tests.support.fake_frontend import Frontend
from tests.support.servers import wait_for

ENDS_WITHIN_S = 6.0
INSTALLATION = Installation(Path("tritonserver"), "a stand-in")


@pytest.fixture
def supervisor_of(tmp_path) -> Callable[[int], Supervisor]:
    """supervisor_of(http_port, drain_s)"""

    def make(http_port: int, drain_s: float = 0.0) -> Supervisor:
        address, log = Address(http_port=http_port), tmp_path / "tritonserver.log"
        return Supervisor(INSTALLATION, tmp_path, tmp_path, address, log, threading.Event(), drain_s)

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
    monkeypatch.setattr(supervisor, "serving_models", lambda *_: ([tmp_path], {"text_classifier": "0123456789ab"}))
    monkeypatch.setattr(run_directory, "BUILD", tmp_path)
    monkeypatch.setattr(Supervisor, "announce", lambda _: None)
    return servers


def test_nothing_is_started_after_a_stop(supervisor_of, launched):
    stopped = supervisor_of(free_ports(1)[0])
    run_directory.run_directory(stopped.address.http_port).mkdir(parents=True)
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
    run_directory.run_directory(running.address.http_port).mkdir(parents=True)
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


@pytest.mark.slow
def test_a_process_that_dies_ends_the_wait_for_an_answer_with_tritons_reason(supervisor_of, process):
    server, starting = process("sh", "-c", "sleep 0.1 & exec sleep 60"), supervisor_of(free_ports(1)[0])
    starting.log.write_text("I1 loading\nI2 pb_stub.cc:366] Failed to initialize Python stub: no file\nI3 unloading\n")
    failure = starting.wait_until_ready(server)
    assert "was killed: I2 pb_stub.cc:366] Failed to initialize Python stub: no file" in failure


def test_a_process_that_ends_and_is_collected_a_moment_later_is_none_that_died(supervisor_of, process):
    """As the one that Triton runs before each stub: beside busy neighbours it was taken for a failed start."""
    code = "import subprocess as s, time; p = s.Popen(['true']); time.sleep(0.7); p.wait(); time.sleep(1.5)"
    server, starting = process(sys.executable, "-c", code), supervisor_of(free_ports(1)[0])
    assert starting.wait_until_ready(server).startswith("could not start: tritonserver ended with code 0")


def test_a_server_that_ends_while_its_processes_are_looked_at_is_none_that_was_killed(
    supervisor_of, process, monkeypatch
):
    """For an instant it is a zombie, as a killed stub is; its code tells more."""
    server, starting = process("sleep", "60"), supervisor_of(free_ports(1)[0])

    def ends_meanwhile(looked_at: TritonProcess) -> str | None:
        looked_at.process.kill()
        state = psutil.Process(looked_at.process.pid).status
        wait_for(lambda: state() == psutil.STATUS_ZOMBIE, ENDS_WITHIN_S, "still runs")
        return broken_process(looked_at)

    monkeypatch.setattr(supervisor, "broken_process", ends_meanwhile)
    monkeypatch.setattr(supervisor, "REASON_S", 0.0)
    assert starting.wait_until_ready(server).startswith("could not start: tritonserver ended with code -9")


@pytest.fixture
def draining(supervisor_of, frontend, launched) -> Iterator[tuple[Supervisor, Frontend, Future]]:
    """A supervisor that was asked to stop, drains for a minute, and whose server answers meanwhile."""
    front = frontend(200)
    running = supervisor_of(front.server_port, 60.0)
    with (
        run_directory.held(front.server_port),
        in_background(running.run, stop=running.stop) as ending,
    ):
        wait_for(lambda: front.asked > 1, ENDS_WITHIN_S, "not watched")
        running.stop.set()
        wait_for(lambda: run_state.read_state(front.server_port).draining, ENDS_WITHIN_S, "not draining")
        yield running, front, ending


def test_a_drain_fails_readiness_while_requests_are_answered(draining):
    _, front, ending = draining
    url = f"http://127.0.0.1:{front.server_port}"
    assert health.report(url, 1.0, live=False) == (health.UNREADY, "draining: it is about to stop, and still answers")
    assert health.report(url, 1.0, live=True)[0] == health.HEALTHY
    assert health.probe(url, 1.0).healthy
    assert not ending.done()


def test_a_second_stop_ends_the_drain_well(draining, launched):
    running, _, ending = draining
    wait_for(lambda: not running.stop.is_set(), ENDS_WITHIN_S, "the first stop is still set")
    running.stop.set()
    assert ending.result(ENDS_WITHIN_S) == 0
    assert [server.poll() is not None for server in launched] == [True]


def test_a_drain_ends_by_itself(supervisor_of, frontend, launched):
    front = frontend(200)
    running, began = supervisor_of(front.server_port, 1.0), time.monotonic()
    with run_directory.held(front.server_port), in_background(running.run, stop=running.stop) as ending:
        wait_for(lambda: front.asked > 1, ENDS_WITHIN_S, "not watched")
        running.stop.set()
        assert ending.result(ENDS_WITHIN_S) == 0
    assert time.monotonic() - began > 1.0


def test_a_full_disk_does_not_end_the_watch(supervisor_of, monkeypatch):
    said = []
    monkeypatch.setattr(supervisor, "say", said.append)
    monkeypatch.setattr(supervisor, "write_state", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    supervisor_of(free_ports(1)[0]).note_state()
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_a_log_without_a_known_reason_is_quoted_all_the_same(tmp_path):
    """A container's log is gone with the container."""
    log = tmp_path / "tritonserver.log"
    assert last_error(log) == f"see {log}"
    log.write_text("I1 started\nE2 the library is missing\n\n", encoding="utf-8")
    assert last_error(log) == f"E2 the library is missing (full log: {log})"
    log.write_text("E1 failed to load 'classifier'\nI2 waiting\n", encoding="utf-8")
    assert last_error(log).startswith("E1 failed to load 'classifier' (")
