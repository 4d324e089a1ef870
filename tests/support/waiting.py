"""How long a test waits before it calls something hung."""

from __future__ import annotations

import time
from collections.abc import Callable

# The limit of every wait for something that must happen at all, however busy the machine is: beside other tests on two
# cores an answer of milliseconds has taken half a minute. pytest-timeout ends a test after longer than this.
HANG_S = 300.0


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str], limit_s: float = HANG_S) -> float:
    """Seconds until the condition held; fails with `what` after the limit.

    what: a function is asked only then, such as for what the server has said by then. limit_s: where the time itself is
    a promise of the product.
    """
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, what() if callable(what) else what
        time.sleep(0.02)
    return time.monotonic() - began
