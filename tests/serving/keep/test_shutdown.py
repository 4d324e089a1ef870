"""A stop lets work end, and waits for nothing else."""

from __future__ import annotations

import sys
import time

import pytest

from build_scripts.serving.keep import shutdown
from build_scripts.serving.keep.shutdown import QUIET_S, stop
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S
from tests.support.servers import wait_for


def deaf(process, code: str, ready):
    """A process that does not end when it is asked to, and then runs the code."""
    server = process(
        sys.executable, "-c",
        f"import signal, time; from pathlib import Path; asked = []\n"
        f"signal.signal(signal.SIGTERM, lambda *_: asked.append(1)); Path({str(ready)!r}).touch()\n"
        f"while not asked: time.sleep(0.01)\n{code}",
    )  # fmt: skip
    wait_for(ready.exists, 10, "not started")
    return server


@pytest.mark.slow
def test_work_in_flight_is_done_first(process, tmp_path):
    """It takes longer than a quiet server is given."""
    done = tmp_path / "done"
    work = f"end = time.process_time() + {1.5 * QUIET_S}\nwhile time.process_time() < end: pass\n"
    work += f"Path({str(done)!r}).touch()"
    stop(deaf(process, work, tmp_path / "ready"))
    assert done.exists()


def test_a_server_that_does_nothing_and_does_not_end_is_ended(process, tmp_path):
    """As one with an idle connection, or with a request that it forgot."""
    server, began = deaf(process, "time.sleep(60)", tmp_path / "ready"), time.monotonic()
    stop(server)
    assert server.poll() is not None
    assert time.monotonic() - began < EXIT_TIMEOUT_S


def test_a_server_that_ends_by_itself_is_not_waited_for(process, tmp_path, monkeypatch):
    monkeypatch.setattr(shutdown, "QUIET_S", 60.0)
    server, began = deaf(process, "", tmp_path / "ready"), time.monotonic()
    stop(server)
    assert server.poll() == 0
    assert time.monotonic() - began < EXIT_TIMEOUT_S
