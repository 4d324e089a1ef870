"""A stop lets work end, and waits for nothing else. The clock is made up; no test waits."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace

import pytest

from build_scripts.serving.keep.processes import RUNNING, SLEEPING, Process
from build_scripts.serving.keep.shutdown import QUIET_S, stop
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S
from tests.support.fake_view import Clock
from tests.support.waiting import wait_for


class Server:
    """Ends at ends_at. It uses the cores until busy_until; while starved, it waits for the CPU and gets none."""

    def __init__(self, ends_at: float = 1e9, busy_until: float = 0.0, starved: bool = False):
        self.clock, self.signals, self.killed_at = Clock(), [], 0.0
        self.began = self.clock.now()
        self.ends_at, self.busy_until, self.starved = ends_at, busy_until, starved
        self.process = SimpleNamespace(pid=1, send_signal=self.signals.append)

    @property
    def seconds(self) -> float:
        return self.clock.now() - self.began

    def poll(self) -> int | None:
        return 0 if self.seconds >= self.ends_at else None

    def kill(self) -> None:
        self.killed_at = self.seconds

    def look(self, _pid: int) -> dict[int, Process]:
        busy = self.seconds < self.busy_until
        used = 0.0 if self.starved else min(self.seconds, self.busy_until)
        return {1: Process("", RUNNING if busy and self.starved else SLEEPING, used)}

    def stopped_after(self) -> float:
        stop(self, now=self.clock.now, wait=self.clock.wait, look=self.look)
        assert self.signals == [signal.SIGTERM]
        return self.killed_at


@pytest.mark.parametrize("starved", [False, True], ids=["computing", "waiting for the CPU"])
def test_work_in_flight_is_awaited(starved):
    assert Server(busy_until=4 * QUIET_S, starved=starved).stopped_after() > 4 * QUIET_S


def test_request_of_half_a_minute_is_answered():
    """As long as one text of 8,192 tokens, or 64 of 512, on a busy machine."""
    assert Server(busy_until=30.0).stopped_after() > 30.0


def test_idle_server_with_open_connections_is_ended():
    assert Server().stopped_after() < 2 * QUIET_S


def test_server_that_ends_is_not_awaited():
    assert Server(ends_at=0.3, busy_until=60.0).stopped_after() < 1.0


def test_endless_work_ends_with_the_exit_timeout():
    assert EXIT_TIMEOUT_S < Server(busy_until=1e9).stopped_after() < EXIT_TIMEOUT_S + 10


def test_real_process_that_ignores_sigterm_is_ended(process, tmp_path):
    ready = tmp_path / "ready"
    code = "import signal, time; from pathlib import Path; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    server = process(sys.executable, "-c", f"{code}Path({str(ready)!r}).touch(); time.sleep(600)")
    wait_for(ready.exists, "not started")
    stop(server)
    assert server.poll() is not None
