"""How long the supervisor waits after failures, and when it gives up."""

from __future__ import annotations

from build_scripts.core.errors import ServingError

# Uptime above STABLE_S resets the count of failures. Below, each failure waits longer, up to MAX_DELAY_S.
STABLE_S, MAX_DELAY_S = 10.0, 2.0
# Give up after this many consecutive failures, or failed starts.
MAX_FAILURES, MAX_FAILED_STARTS = 12, 4


class BackOff:
    """Counts consecutive failures. max_delay_s: longest wait."""

    def __init__(self, max_delay_s: float = MAX_DELAY_S):
        self.max_delay_s = max_delay_s
        self.failures = self.failed_starts = 0

    def delay(self, failure: str, uptime_s: float | None) -> float:
        """Seconds to wait after a failure. Raises ServingError after too many.

        uptime_s: for how long the server had answered; None if it never did.
        """
        stable = uptime_s is not None and uptime_s >= STABLE_S
        self.failures = 0 if stable else self.failures + 1
        self.failed_starts = self.failed_starts + 1 if uptime_s is None else 0
        if self.failures >= MAX_FAILURES or self.failed_starts >= MAX_FAILED_STARTS:
            raise ServingError(
                f"gave up after {max(self.failures, self.failed_starts)} failures in a row; the last: {failure}"
            )
        return 0.0 if self.failures < 2 else min(0.25 * 2 ** (self.failures - 2), self.max_delay_s)
