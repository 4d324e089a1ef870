"""A thread that tokenizes long texts, so that short requests do not wait for them.

Tokenizing time grows with a text's bytes, including the part that truncation drops: 0.1 to 0.4 ms per KiB, and 2.2 ms
for the worst case found, an Arabic ligature that NFKC expands to 18 characters. `execute` would block everybody.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from encoder import Row, Text

# deadline = arrival + bytes / BYTES_PER_S, about the pace of tokenizing. The earliest deadline goes first, text by
# text: short requests overtake long ones, and no request starves.
BYTES_PER_S = 2 << 20
# Nice value below `execute` and equal to the embedded classifier's.
NICE = 5
# Called once with the row of each text, or with the exception that ended the request.
Answer = Callable[[list[Row], Exception | None], object]


@dataclass(eq=False)
class Request:
    """A request's texts, and the rows of the texts done so far."""

    texts: Sequence[Text]
    size: int
    answer: Answer
    rows: list[Row] = field(default_factory=list)


class LongTexts:
    """tokenize: texts -> rows. limit: maximum bytes of text that may wait, excluding the request being tokenized."""

    def __init__(self, tokenize: Callable[[Sequence[Text]], list[Row]], limit: int) -> None:
        self.tokenize = tokenize
        self.limit = limit
        self.waiting: list[tuple[float, int, Request]] = []  # a heap of (deadline, number, request)
        self.waiting_bytes = 0
        self.unanswered = 0
        self.numbers = itertools.count()
        self.changed = threading.Condition()
        threading.Thread(target=self.run, name="long texts", daemon=True).start()

    def add(self, texts: Sequence[Text], size: int, answer: Answer) -> bool:
        """Queue a request of `size` bytes; the thread calls `answer`. Returns False if there is no room."""
        with self.changed:
            if self.waiting and self.waiting_bytes + size > self.limit:
                return False
            deadline = time.monotonic() + size / BYTES_PER_S
            heapq.heappush(self.waiting, (deadline, next(self.numbers), Request(texts, size, answer)))
            self.waiting_bytes += size
            self.unanswered += 1
            self.changed.notify_all()
        return True

    def finish(self) -> None:
        """Return once every request is answered."""
        with self.changed:
            self.changed.wait_for(lambda: not self.unanswered)

    def run(self) -> None:
        """Tokenize one text of the request with the earliest deadline, forever."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.waiting))
                entry = heapq.heappop(self.waiting)
            request, error = entry[-1], None
            try:
                request.rows += self.tokenize([request.texts[len(request.rows)]])
            except Exception as problem:  # fails this request only; the thread goes on
                error = problem
            with self.changed:
                if error is None and len(request.rows) < len(request.texts):
                    heapq.heappush(self.waiting, entry)
                    continue
                self.waiting_bytes -= request.size
            request.answer(request.rows, error)
            with self.changed:
                self.unanswered -= 1
                self.changed.notify_all()
