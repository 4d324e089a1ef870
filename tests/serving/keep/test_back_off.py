"""How long the supervisor waits after failures, and when it gives up."""

from __future__ import annotations

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.serving.keep.back_off import MAX_DELAY_S, MAX_FAILED_STARTS, MAX_FAILURES, STABLE_S, BackOff


def fail(back_off: BackOff, times: int, uptime_s: float | None = 0.0) -> list[float]:
    """The delay after each of some failures in a row."""
    return [back_off.delay("it burns", uptime_s) for _ in range(times)]


def test_delays_grow_until_it_gives_up():
    back_off, expected = BackOff(), [0.0, 0.25, 0.5, 1.0]
    assert fail(back_off, MAX_FAILURES - 1) == expected + [MAX_DELAY_S] * (MAX_FAILURES - 1 - len(expected))
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILURES} failures in a row; .*it burns"):
        fail(back_off, 1)


def test_long_uptime_resets_the_count():
    back_off = BackOff()
    fail(back_off, MAX_FAILURES - 1)
    assert fail(back_off, 1, uptime_s=STABLE_S) == [0.0]
    assert fail(back_off, 3) == [0.0, 0.25, 0.5]


def test_gives_up_sooner_on_failed_starts():
    back_off = BackOff()
    fail(back_off, MAX_FAILED_STARTS - 1, uptime_s=None)
    with pytest.raises(ServingError, match=f"gave up after {MAX_FAILED_STARTS} failures in a row"):
        fail(back_off, 1, uptime_s=None)


def test_only_consecutive_failed_starts_count():
    back_off = BackOff()
    fail(back_off, MAX_FAILED_STARTS - 1, uptime_s=None)
    fail(back_off, 1)
    fail(back_off, MAX_FAILED_STARTS - 1, uptime_s=None)
