"""Choose the rows to compute next, fairly between long and short requests. Needs no Triton, no torch and no clock.

Requests of similar size share a queue, first come, first served. Queues share computing time fairly: the queue that has
used least goes next, and a queue that was empty starts level with the others (start-time fair queueing: Goyal, Vin and
Cheng, 1996). Each queue may use AHEAD_S more than the queue of the next longer requests. So a short text waits for the
part in progress, not for a batch, and no queue starves. Spare room in a part is filled from the other queues.

    schedule.add(Entry(request, tokens=[400] * 64, kind=512), now)
    part = schedule.take(now)      # rows of one queue's requests, filled up from others
    schedule.done(part, seconds)   # computing it took this long
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Upper bounds of the queues, in tokens per request: a message, a text of BERT's maximum length, a few such texts. The
# last queue has no bound: batches.
QUEUES = (64, 512, 4096)
# Time budget of a part; a single text may exceed it. A short request waits for the part in progress and its own, so
# parts are small while short requests arrive. Small parts cost no more: at 300 words per text on 2 cores, a part of
# one text takes as long per token as a part of sixteen.
SMALL_S, LARGE_S = 0.02, 0.1
AHEAD_S = 0.02
# A part of short requests is filled from other queues up to this share of its limit; the first tokens cost little.
FILLING = 0.25
# Parts stay small for this long after a short request: interactive clients send again within this time.
RECENT_S = 2.0
# Tokens per second before the first measurement, and the weight of a new measurement.
FIRST_RATE, WEIGHT = 10_000.0, 0.2
# Maximum backlog here; 8 MiB of ids and masks. Further requests wait in Triton's queue.
HELD_REQUESTS, HELD_TOKENS = 128, 64 * 8192


@dataclass(eq=False)
class Entry:
    """A waiting request. tokens: per row. kind: only rows of the same kind can be computed together.

    next: first row not handed out yet. results: outputs of the rows before it, one item per part.
    """

    request: Any
    tokens: list[int]
    kind: object = None
    next: int = 0
    results: list[Any] = field(default_factory=list)
    queue: int = field(init=False)

    def __post_init__(self) -> None:
        total = sum(self.tokens)
        self.queue = sum(total > limit for limit in QUEUES)


# Rows [first, last) of an entry.
Piece = tuple[Entry, int, int]


@dataclass(frozen=True)
class Part:
    """Rows that are computed together, and their tokens."""

    pieces: list[Piece]
    tokens: int


class Schedule:
    """max_rows: maximum rows of a part."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.queues: list[deque[Entry]] = [deque() for _ in range(len(QUEUES) + 1)]
        # Computing time used by each queue, in seconds. level: the maximum over queues at the start of their turns.
        self.used = [0.0] * len(self.queues)
        self.level = 0.0
        self.rate = FIRST_RATE
        self.last_short = -RECENT_S
        # Backlog: requests of which no row was taken, and tokens of all rows not taken.
        self.requests = self.tokens = 0

    def __bool__(self) -> bool:
        """Whether anything waits to be computed."""
        return any(self.queues)

    def has_room_for(self, entries: Sequence[Entry]) -> bool:
        """Whether the backlog stays within its limits. An empty schedule takes anything."""
        tokens = sum(sum(entry.tokens) for entry in entries)
        within = self.requests + len(entries) <= HELD_REQUESTS and self.tokens + tokens <= HELD_TOKENS
        return within or not self

    def add(self, entry: Entry, now: float) -> None:
        self.requests += 1
        self.tokens += sum(entry.tokens)
        if entry.queue == 0:
            self.last_short = now
        if not self.queues[entry.queue]:
            self.used[entry.queue] = max(self.used[entry.queue], self.level)
        self.queues[entry.queue].append(entry)

    def limit(self, now: float) -> float:
        """Maximum tokens of a part that starts now."""
        return self.rate * (SMALL_S if now - self.last_short < RECENT_S else LARGE_S)

    def is_one_part(self, costs: Sequence[Sequence[int]], now: float) -> bool:
        """Whether new requests fit in one part. costs: tokens of each request's rows."""
        totals = [sum(tokens) for tokens in costs]
        if min(totals) <= QUEUES[0]:
            self.last_short = now
        # Among short requests only, none needs to overtake another.
        limit = self.rate * LARGE_S if max(totals) <= QUEUES[0] else self.limit(now)
        return sum(totals) <= limit or (sum(map(len, costs)) == 1 and sum(totals) <= self.longest())

    def longest(self) -> float:
        """Maximum tokens of any part that is more than a single text."""
        return max(QUEUES[0], self.rate * LARGE_S)

    def is_long(self, part: Part) -> bool:
        """Whether the part is a single text of more than `longest` tokens; it cannot be split."""
        rows = sum(last - first for _, first, last in part.pieces)
        return rows == 1 and part.tokens > self.longest()

    def smallest(self, costs: Sequence[Sequence[int]]) -> list[int]:
        """Indices of the smallest requests that together make one part."""
        indices = sorted(range(len(costs)), key=lambda index: sum(costs[index]))
        tokens = itertools.accumulate(sum(costs[index]) for index in indices)
        return [index for index, total in zip(indices, tokens) if total <= self.longest()]

    def take(self, now: float) -> Part:
        """The next part, with at least one row."""
        turns = [(used + AHEAD_S * queue, queue) for queue, used in enumerate(self.used) if self.queues[queue]]
        queue = min(turns)[1]
        self.level = max(self.level, self.used[queue])
        limit = self.limit(now)
        kind = self.queues[queue][0].kind
        # Among short requests, none needs to overtake another. Small parts cost 16 such clients 10 to 60 % of the
        # requests/s, and their higher cost per token shrank the next parts further.
        part = self.fill(Part([], 0), queue, kind, limit if queue else self.rate * LARGE_S)
        for other in range(len(self.queues)):
            if other != queue:
                part = self.fill(part, other, kind, limit if queue else FILLING * limit)
        return part

    def fill(self, part: Part, queue: int, kind: object, limit: float) -> Part:
        """Add rows of the queue to the part, up to the limit."""
        pieces, tokens = list(part.pieces), part.tokens
        rows = sum(last - first for _, first, last in pieces)
        for entry in [entry for entry in self.queues[queue] if entry.kind == kind]:
            first = last = entry.next
            while last < len(entry.tokens) and rows < self.max_rows:
                if rows and tokens + entry.tokens[last] > limit:
                    break
                tokens += entry.tokens[last]
                rows += 1
                last += 1
            if last == first:
                break
            self.requests -= first == 0
            self.tokens -= sum(entry.tokens[first:last])
            pieces.append((entry, first, last))
            entry.next = last
            if last < len(entry.tokens):
                break
            self.drop(entry)
        return Part(pieces, tokens)

    def done(self, part: Part, seconds: float) -> None:
        """Charge each queue for its share of a computed part."""
        for entry, first, last in part.pieces:
            self.used[entry.queue] += seconds * sum(entry.tokens[first:last]) / part.tokens
        self.measured(part.tokens, seconds)

    def measured(self, tokens: int, seconds: float) -> None:
        """Update the rate, but not from tiny parts, which say little about large ones."""
        if tokens > QUEUES[0]:
            self.rate += WEIGHT * (tokens / max(seconds, 1e-6) - self.rate)

    def drop(self, entry: Entry) -> None:
        """Remove the entry's remaining rows."""
        queue = self.queues[entry.queue]
        if entry in queue:
            queue.remove(entry)
            self.requests -= entry.next == 0
            self.tokens -= sum(entry.tokens[entry.next :])
