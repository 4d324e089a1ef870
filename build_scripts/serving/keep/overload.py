"""Tell from counters whether a server refuses most of its requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from build_scripts.serving.keep.counters import Counters

# Period that is looked at. The tokenizer hands its counts over once a second.
WINDOW_S = 3.0


class Overload:
    """Whether a classifier refused more requests than it answered, from counters that are added at every look."""

    def __init__(self) -> None:
        self.looks: deque[tuple[float, Counters]] = deque()

    def add(self, now: float, counters: Counters) -> None:
        self.looks.append((now, counters))
        while len(self.looks) > 2 and now - self.looks[1][0] >= WINDOW_S:
            self.looks.popleft()

    def overloaded(self, names: Sequence[str]) -> list[str]:
        """Those classifiers that are overloaded; none before the window is full."""
        if not self.looks or self.looks[-1][0] - self.looks[0][0] < WINDOW_S:
            return []
        first, last = self.looks[0][1], self.looks[-1][1]
        refused = {name: last.refused(name) - first.refused(name) for name in names}
        return [name for name in names if refused[name] > max(last.answered(name) - first.answered(name), 0.0)]
