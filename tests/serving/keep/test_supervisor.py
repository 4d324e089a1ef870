"""How the supervisor starts servers again, and what it does when it is asked to stop. The clock is made up."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.serving.keep import supervisor, verdict
from build_scripts.serving.keep.back_off import MAX_DELAY_S, MAX_FAILED_STARTS, MAX_FAILURES, BackOff
from build_scripts.serving.keep.run_directory import held, run_directory
from build_scripts.serving.keep.supervisor import Supervisor
from build_scripts.serving.keep.verdict import DRAINING, READY, RESTARTING, STARTING
from build_scripts.serving.start.installation import Installation
from tests.support.fake_view import ANSWER, ERROR, TIMEOUT, Clock, FakeView, embedded_processes

INSTALLATION = Installation(Path("tritonserver"), "a stand-in")
DEFAULT = "text_classifier"


class FakeServer:
    """A launched tritonserver; `view` is what its supervisor sees."""

    def __init__(self, clock: Clock):
        self.view = FakeView(clock, table=embedded_processes())
        self.killed = False

    def kill(self) -> None:
        self.killed = True


class Supervised(Supervisor):
    """Runs fake servers; begin: called with each new one, to prepare what it will do."""

    def __init__(self, directory: Path, port: int, drain_s: float, begin: Callable[[FakeServer], None]):
        self.clock, self.servers, self.told, self.begin = Clock(), list[FakeServer](), list[str](), begin
        log = directory / "tritonserver.log"
        super().__init__(INSTALLATION, directory, directory, Address(http_port=port), log, self.clock, drain_s)
        run_directory(port).mkdir(parents=True)

    def launch(self, *_) -> FakeServer:
        assert all(server.killed for server in self.servers)
        self.servers.append(FakeServer(self.clock))
        self.begin(self.servers[-1])
        return self.servers[-1]

    def view_of(self, server: FakeServer) -> FakeView:
        return server.view

    def tell(self, word: str, detail: str) -> None:
        super().tell(word, detail)
        self.told += [word] if self.told[-1:] != [word] else []

    def announce(self) -> None:
        pass


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(supervisor, "say", lines.append)
    return lines


@pytest.fixture
def supervise(monkeypatch, tmp_path, port, said) -> Callable[..., Supervised]:
    """supervise(begin, drain_s): a supervisor of fake servers; it stops after an hour at the latest."""

    def make(begin: Callable[[FakeServer], None] = lambda _: None, drain_s: float = 0.0) -> Supervised:
        made = Supervised(tmp_path, port, drain_s, begin)
        monkeypatch.setattr(supervisor, "launch", made.launch)
        made.clock.after(3600.0, made.clock.set)
        return made

    monkeypatch.setattr(supervisor, "stop_server", lambda server: server.kill())
    monkeypatch.setattr(supervisor, "serving_models", lambda *_: ([tmp_path], {DEFAULT: "0123456789ab"}))
    return make


def fail_after(seconds: float) -> Callable[[FakeServer], None]:
    """Each server answers for this long, then fails."""
    return lambda server: server.view.clock.after(seconds, lambda: server.view.answers.update({DEFAULT: ERROR}))


def test_nothing_is_started_after_a_stop(supervise):
    stopped = supervise()
    stopped.stop.set()
    assert stopped.run() == 0
    assert stopped.servers == []


def test_failed_server_is_replaced_at_once_and_the_reason_told(supervise, said):
    running = supervise(fail_after(60.0))
    assert running.run() == 0
    assert len(running.servers) > 10
    assert all(server.killed for server in running.servers)
    assert "inference fails: HTTP 500: stub is not healthy; restarting" in said
    assert running.told[:5] == [STARTING, READY, verdict.SILENT, RESTARTING, STARTING]


def test_servers_that_fail_soon_are_started_ever_later_and_given_up(supervise, said):
    running = supervise(fail_after(2.0))
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILURES} failures in a row; .*Triton's log is"):
        running.run()
    assert len(running.servers) == MAX_FAILURES
    assert f"inference fails: {ERROR.reason}; restarting in {MAX_DELAY_S:g} s" in said


def test_first_start_that_fails_is_not_repeated(supervise):
    running = supervise(lambda server: setattr(server.view, "code", 1))
    with pytest.raises(ServingError, match="could not start: tritonserver ended with code 1"):
        running.run()
    assert len(running.servers) == 1


def test_later_starts_that_fail_are_given_up_soon(supervise):
    def begin(server: FakeServer) -> None:
        if len(running.servers) == 1:
            fail_after(60.0)(server)
        else:
            server.view.code = 1

    running = supervise(begin)
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILED_STARTS} failures in a row"):
        running.run()
    assert len(running.servers) == 1 + MAX_FAILED_STARTS


def test_stop_ends_the_wait_for_a_restart(supervise):
    running = supervise(fail_after(2.0))
    running.back_off = BackOff(max_delay_s=1e6)
    running.clock.after(150.0, running.clock.set)
    assert running.run() == 0
    assert running.clock.now() - 1000.0 < 151.0
    assert all(server.killed for server in running.servers)


def test_drain_fails_readiness_while_requests_are_answered(supervise, said):
    running = supervise(drain_s=30.0)
    running.clock.after(10.0, running.clock.set)
    seen = []
    running.clock.after(20.0, lambda: seen.append(running.servers[0].view.probe(DEFAULT, 1.0)))
    with held(running.address.http_port):
        running.clock.after(21.0, lambda: seen.append(verdict.read("127.0.0.1", str(running.address.http_port))))
        assert running.run() == 0
    assert seen == [ANSWER, (DRAINING, "it is about to stop, and still answers")]
    assert running.told[:2] == [STARTING, READY]
    assert 40.0 < running.clock.now() - 1000.0 < 45.0
    assert said[-1] == "stopped"


def test_second_stop_ends_the_drain(supervise):
    running = supervise(drain_s=60.0)
    running.clock.after(10.0, running.clock.set)
    running.clock.after(20.0, running.clock.set)
    assert running.run() == 0
    assert running.clock.now() - 1000.0 < 25.0


def test_failure_ends_the_drain(supervise):
    running = supervise(fail_after(15.0), drain_s=600.0)
    running.clock.after(10.0, running.clock.set)
    assert running.run() == 0
    assert running.clock.now() - 1000.0 < 30.0


def test_server_without_answer_that_computes_is_never_replaced(supervise):
    """The whole loop with a load in which the server gets little of the CPU."""

    def begin(server: FakeServer) -> None:
        server.view.clock.after(10.0, lambda: server.view.answers.update({DEFAULT: TIMEOUT}))
        server.view.runnable.add(12)

    running = supervise(begin)
    assert running.run() == 0
    assert len(running.servers) == 1


def test_full_disk_does_not_end_the_supervisor(supervise, said, monkeypatch):
    monkeypatch.setattr(supervisor, "write_state", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    running = supervise()
    assert running.run() == 0
    assert "No space left on device" in said[0]
    assert len(running.servers) == 1
