"""How long a test waits before it calls something hung."""

from __future__ import annotations

import time
from collections.abc import Callable

# One limit for every wait, so that no test depends on the machine's speed: beside other tests on two cores an answer of
# milliseconds has taken half a minute. pytest-timeout ends a test after longer than this.
HANG_S = 300.0


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Seconds until the condition held; fails with `what` after HANG_S."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < HANG_S, what
        time.sleep(0.02)
    return time.monotonic() - began
