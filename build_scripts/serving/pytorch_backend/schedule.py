"""What is computed next: which texts of which requests, how many at once. No Triton, no torch, no clock of its own.

Requests of similar size wait in one line, first come, first served. Lines share the computing time evenly: the line
that has had least goes next, and one that was empty starts level with the others, whatever it had before (start-time
fair queueing: Goyal, Vin and Cheng, 1996). A line of smaller requests may be ahead by AHEAD_S of the next. So a short
text waits for the part that is being computed, not for somebody's batch, and no line waits for longer than a few parts
before it gets its share. Room that a line leaves in its part is filled from the others.

    schedule.add(Entry(request, tokens=[400] * 64, kind=512), now)
    part = schedule.take(now)      # some rows of one line's requests
    schedule.done(part, seconds)   # and how long they took
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

# Tokens of a request, special ones included: a message, a text that fills BERT's 512, a handful of them, a batch.
LINES = (64, 512, 4096)
# How long a part may take, if one text does not take longer. Short requests are answered after the part that they met
# and their own, so parts are small while such come. Measured with 300 words a text on 2 cores: a part of one text costs
# each token as much as a part of sixteen.
SMALL_S, LARGE_S = 0.02, 0.1
AHEAD_S = 0.02
# Up to this share of its limit a part of short requests is filled with others: few tokens cost nearly as much as some.
FILLING = 0.25
# After the last short request parts stay small for so long: whoever types or pages sends the next one sooner.
RECENT_S = 2.0
# Tokens a second until it was measured, and the weight of the last measurement after that.
FIRST_RATE, WEIGHT = 10_000.0, 0.2
# What may be held: beyond it requests wait in Triton's own queue. Two full batches.
HELD_REQUESTS, HELD_TOKENS = 128, 2 * 64 * 512


@dataclass(eq=False)
class Entry:
    """A request that waits. tokens: of each of its rows. kind: only rows of one kind can be computed together.

    next: the first row that was not handed out yet. results: whatever the rows before it gave.
    """

    request: object
    tokens: list[int]
    kind: object = None
    next: int = 0
    results: list = field(default_factory=list)
    line: int = field(init=False)

    def __post_init__(self):
        total = sum(self.tokens)
        self.line = sum(total > limit for limit in LINES)


# An entry, and its rows from the first to before the last.
Piece = tuple[Entry, int, int]


@dataclass(frozen=True)
class Part:
    """What is computed together, and how many tokens it has."""

    pieces: list[Piece]
    tokens: int


class Schedule:
    """max_rows: of a part."""

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        self.lines: list[deque[Entry]] = [deque() for _ in range(len(LINES) + 1)]
        # Seconds that each line has had, and the most that one had when its turn came.
        self.had = [0.0] * len(self.lines)
        self.level = 0.0
        self.rate = FIRST_RATE
        self.last_short = -RECENT_S
        # Waiting: requests of which nothing was handed out, and tokens that were not.
        self.requests = self.tokens = 0

    def __bool__(self) -> bool:
        """Whether anything waits to be computed."""
        return any(self.lines)

    def has_room_for(self, entries: list[Entry]) -> bool:
        """Always, if nothing is held."""
        tokens = sum(sum(entry.tokens) for entry in entries)
        within = self.requests + len(entries) <= HELD_REQUESTS and self.tokens + tokens <= HELD_TOKENS
        return within or not self

    def add(self, entry: Entry, now: float) -> None:
        self.requests += 1
        self.tokens += sum(entry.tokens)
        if entry.line == 0:
            self.last_short = now
        if not self.lines[entry.line]:
            self.had[entry.line] = max(self.had[entry.line], self.level)
        self.lines[entry.line].append(entry)

    def limit(self, now: float) -> float:
        """Tokens of a part that begins now."""
        return self.rate * (SMALL_S if now - self.last_short < RECENT_S else LARGE_S)

    def is_one_part(self, costs: list[list[int]], now: float) -> bool:
        """Whether requests that just came, with so many tokens in their rows, may be computed at once and together."""
        totals = [sum(tokens) for tokens in costs]
        if min(totals) <= LINES[0]:
            self.last_short = now
        # Short requests among themselves have nobody to overtake.
        limit = self.rate * LARGE_S if max(totals) <= LINES[0] else self.limit(now)
        return sum(map(len, costs)) == 1 or sum(totals) <= limit

    def take(self, now: float) -> Part:
        """The next part; at least one row."""
        turns = [(had + AHEAD_S * line, line) for line, had in enumerate(self.had) if self.lines[line]]
        line = min(turns)[1]
        self.level = max(self.level, self.had[line])
        part, limit = Part([], 0), self.limit(now)
        kind = self.lines[line][0].kind
        # Short requests among themselves have nobody to overtake. In small parts 16 clients with short texts got 0.4 to
        # 0.9 of the requests/s; fewer tokens at once also cost more each, which made the next parts smaller still.
        part = self.fill(part, line, kind, limit if line else self.rate * LARGE_S)
        for other in range(len(self.lines)):
            if other != line:
                part = self.fill(part, other, kind, limit if line else FILLING * limit)
        return part

    def fill(self, part: Part, line: int, kind: object, limit: float) -> Part:
        """The part with as many more rows of the line as fit."""
        pieces, tokens = list(part.pieces), part.tokens
        rows = sum(last - first for _, first, last in pieces)
        for entry in [entry for entry in self.lines[line] if entry.kind == kind]:
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
        """The part was computed, in so long: each line pays for its tokens."""
        for entry, first, last in part.pieces:
            self.had[entry.line] += seconds * sum(entry.tokens[first:last]) / part.tokens
        self.measured(part.tokens, seconds)

    def measured(self, tokens: int, seconds: float) -> None:
        if tokens > LINES[0]:  # a few say nothing about many
            self.rate += WEIGHT * (tokens / max(seconds, 1e-6) - self.rate)

    def drop(self, entry: Entry) -> None:
        """The entry is not to be computed any further."""
        line = self.lines[entry.line]
        if entry in line:
            line.remove(entry)
            self.requests -= entry.next == 0
            self.tokens -= sum(entry.tokens[entry.next :])
