"""How long the supervisor waits after failures, and when it gives up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.serving.keep.supervisor import MAX_DELAY_S, MAX_FAILED_STARTS, MAX_FAILURES, STABLE_S, Supervisor
from build_scripts.serving.start.installation import Installation


@pytest.fixture
def failing(tmp_path) -> Supervisor:
    installation, log = Installation(Path("tritonserver"), "a stand-in"), tmp_path / "tritonserver.log"
    return Supervisor(installation, tmp_path, tmp_path, Address(), log, threading.Event())


def fail(supervisor: Supervisor, times: int, answered_for: float | None = 0.0) -> list[float]:
    """How long to wait after each of so many failures in a row."""
    return [
        supervisor.back_off("it burns", None if answered_for is None else time.monotonic() - answered_for)
        for _ in range(times)
    ]


def test_failures_in_a_row_wait_longer_until_they_are_too_many(failing):
    expected = [0.0, 0.25, 0.5, 1.0]
    assert fail(failing, MAX_FAILURES - 1) == expected + [MAX_DELAY_S] * (MAX_FAILURES - 1 - len(expected))
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILURES} failures in a row; .*it burns") as refusal:
        fail(failing, 1)
    assert str(failing.log) in str(refusal.value)


def test_a_server_that_answered_for_long_resets_the_count(failing):
    fail(failing, MAX_FAILURES - 1)
    assert fail(failing, 1, answered_for=STABLE_S) == [0.0]
    assert fail(failing, 3) == [0.0, 0.25, 0.5]


def test_starts_that_never_answered_are_soon_too_many(failing):
    fail(failing, MAX_FAILED_STARTS - 1, answered_for=None)
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILED_STARTS} failures in a row") as refusal:
        fail(failing, 1, answered_for=None)
    assert str(failing.log) in str(refusal.value)


def test_only_failed_starts_in_a_row_are_too_many(failing):
    fail(failing, MAX_FAILED_STARTS - 1, answered_for=None)
    fail(failing, 1)
    fail(failing, MAX_FAILED_STARTS - 1, answered_for=None)
