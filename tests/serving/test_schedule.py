"""The backend's schedule: short requests overtake, no size starves, and every row is computed once.

The tests own the clock: a part takes a millisecond plus one per SPEED tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_scripts.serving.pytorch_backend import schedule as policy
from build_scripts.serving.pytorch_backend.schedule import Entry, Part, Schedule

SPEED, MAX_ROWS = 20.0, 64
SHORT, LONG, BATCH = [10], [400], [400] * 64


class Clock:
    """Computes parts of a schedule, one after the other; `now` in seconds."""

    def __init__(self, schedule: Schedule):
        self.schedule, self.now = schedule, 100.0
        self.schedule.rate = 1000 * SPEED

    def add(self, name: object, tokens: list[int], kind: object = None) -> Entry:
        entry = Entry(name, tokens, kind)
        self.schedule.add(entry, self.now)
        return entry

    def step(self) -> Part:
        part = self.schedule.take(self.now)
        seconds = (1 + part.tokens / SPEED) / 1000
        self.now += seconds
        self.schedule.done(part, seconds)
        return part

    def until(self, ended: Callable[[], bool]) -> float:
        began = self.now
        while not ended():
            self.step()
        return self.now - began


@pytest.fixture
def clock() -> Clock:
    return Clock(Schedule(MAX_ROWS))


def names(part: Part) -> list[object]:
    return [entry.request for entry, _, _ in part.pieces]


def is_done(entry: Entry) -> bool:
    return entry.next == len(entry.tokens)


@pytest.mark.parametrize("earlier", [[BATCH], [LONG] * 64, [BATCH, *[LONG] * 64, *[[300] * 8] * 8]])
def test_short_text_waits_for_one_part(clock, earlier):
    for tokens in earlier:
        clock.add("earlier", tokens)
    for _ in range(5):
        clock.step()  # the part in progress
        clock.add("short", SHORT)
        assert names(clock.step()) == ["short"]


def test_long_text_overtakes_batch(clock):
    clock.add("batch", BATCH)
    clock.step()
    clock.add("one", LONG)
    assert names(clock.step())[0] == "one"


def test_spare_room_is_filled_without_delaying_short_texts(clock):
    limit = 1000 * SPEED * policy.SMALL_S
    for name, tokens in {"short": SHORT, "small": [60, 10], "long": LONG}.items():
        clock.add(name, tokens)
    assert names(clock.step()) == ["short", "small"]  # 80 tokens; the long one would make it 480
    clock.add("short", SHORT)
    clock.schedule.used[0] = 1e9  # its queue is not next
    part = clock.step()
    assert names(part) == ["long"]
    assert part.tokens + sum(SHORT) > limit
    clock.add("not as long", [300])
    assert names(clock.step()) == ["not as long", "short"]


def endless(clock: Clock, tokens: list[int], many: int) -> Iterator[Entry]:
    """Keeps `many` requests of this size waiting."""
    for number in itertools.count():
        yield clock.add(f"endless {number}", tokens)
        while sum(len(queue) for queue in clock.schedule.queues) > many:
            yield clock.step()


@pytest.mark.parametrize(("flood", "waiting"), [(SHORT, BATCH), (LONG, BATCH), (BATCH, LONG), (LONG, SHORT)])
def test_flood_leaves_half_of_the_time_to_another_size(clock, flood, waiting):
    """Bound: twice the time of the request alone, one part of each size, and the head start of smaller sizes."""
    alone = Clock(Schedule(MAX_ROWS))
    alone.schedule.last_short = alone.now = 1e9  # its parts are as small
    entry = alone.add("alone", waiting)
    needed = alone.until(lambda: is_done(entry))
    longest_part = (1 + max(flood[0], waiting[0], 1000 * SPEED * policy.LARGE_S) / SPEED) / 1000
    steps = endless(clock, flood, 100)
    for _ in range(500):
        next(steps)
    entry = clock.add("waiting", waiting)
    began = clock.now
    while not is_done(entry):
        next(steps)
    assert clock.now - began <= 2 * needed + 2 * longest_part + len(policy.QUEUES) * policy.AHEAD_S


def test_time_used_while_alone_is_not_paid_back(clock):
    for _ in range(1000):  # no other queue waits
        clock.add("long", LONG)
        clock.step()
    clock.add("batch", BATCH)
    clock.step()
    clock.add("long", LONG)
    assert names(clock.step())[0] == "long"


def test_one_size_is_first_come_first_served(clock):
    for number in range(10):
        clock.add(number, [200, 100])
    order = []
    while clock.schedule:
        order += names(clock.step())
    assert order == sorted(order)


def test_parts_are_small_while_short_requests_arrive(clock):
    clock.schedule.last_short = clock.now - policy.RECENT_S
    clock.add("batch", BATCH)
    large = clock.step()
    clock.add("short", SHORT)
    assert names(clock.step()) == ["short"]
    small = clock.step()
    assert small.tokens <= 1000 * SPEED * policy.SMALL_S < 1000 * SPEED * policy.LARGE_S / 2 < large.tokens
    clock.now += policy.RECENT_S
    assert clock.step().tokens > 2 * small.tokens


def test_new_short_requests_are_one_part_unless_a_long_one_is_among_them(clock):
    several = [SHORT] * 64  # 32 ms
    assert sum(map(sum, several)) > 1000 * SPEED * policy.SMALL_S
    assert clock.schedule.is_one_part(several, clock.now)
    assert not clock.schedule.is_one_part([*several, LONG], clock.now)


def test_waiting_short_requests_are_one_part(clock):
    """Smaller parts halved the requests/s of many short clients, and with the rate the next parts shrank too."""
    for number in range(60):
        clock.add(number, SHORT)
    clock.add("long", LONG)
    assert 60 * sum(SHORT) > clock.schedule.limit(clock.now)
    assert len(clock.step().pieces) == 60
    assert [entry.request for entry, _, _ in clock.step().pieces] == ["long"]


def test_limit_follows_the_measured_rate(clock):
    clock.schedule.rate = policy.FIRST_RATE
    for _ in range(5):
        clock.add("batch", BATCH)
        clock.until(lambda: not clock.schedule)
    assert clock.schedule.rate == pytest.approx(1000 * SPEED, rel=0.05)
    before = clock.schedule.rate
    clock.add("short", SHORT)
    clock.step()
    assert clock.schedule.rate == before  # a few tokens predict nothing about many


arrivals = st.lists(
    st.tuples(st.lists(st.integers(1, 512), min_size=1, max_size=20), st.sampled_from([256, 512]), st.integers(0, 3)),
    max_size=30,
)


@given(arrivals, st.integers(1, 8), st.floats(1, 1e5))
def test_every_row_is_computed_once_within_the_limits(requests, max_rows, rate):
    clock = Clock(Schedule(max_rows))
    clock.schedule.rate = rate
    handed_out: dict[int, list[int]] = {number: [] for number in range(len(requests))}

    def step() -> None:
        rate_now, limit = clock.schedule.rate, clock.schedule.limit(clock.now)
        part = clock.step()
        rows = [row for _, first, last in part.pieces for row in range(first, last)]
        assert 1 <= len(rows) <= max_rows
        assert part.tokens == sum(sum(entry.tokens[first:last]) for entry, first, last in part.pieces)
        if all(entry.queue == 0 for entry, _, _ in part.pieces):
            limit = rate_now * policy.LARGE_S
        assert part.tokens <= limit or len(rows) == 1
        assert len({entry.kind for entry, _, _ in part.pieces}) == 1
        for entry, first, last in part.pieces:
            handed_out[entry.request] += range(first, last)

    for number, (tokens, kind, steps) in enumerate(requests):
        clock.add(number, tokens, kind)
        for _ in range(steps):
            if clock.schedule:
                step()
    while clock.schedule:
        step()
    assert handed_out == {number: [*range(len(tokens))] for number, (tokens, _, _) in enumerate(requests)}
    assert (clock.schedule.requests, clock.schedule.tokens) == (0, 0)


def test_long_is_a_single_text_that_exceeds_a_part(clock):
    longest = int(clock.schedule.longest())
    for tokens, expected in (([longest], False), ([longest + 1], True), ([longest, 2], False)):
        clock.add("text", tokens)
        assert clock.schedule.is_long(clock.schedule.take(clock.now)) == expected
        clock.until(lambda: not clock.schedule)
    assert clock.schedule.is_one_part([[longest]], clock.now)
    assert not clock.schedule.is_one_part([[longest + 1]], clock.now)


def test_smallest_requests_that_are_one_part(clock):
    longest = int(clock.schedule.longest())
    assert clock.schedule.smallest([[longest], [10, 10], [5]]) == [2, 1]
    assert clock.schedule.smallest([[longest - 25], [10, 10], [5]]) == [2, 1, 0]
    assert clock.schedule.smallest([[longest + 1]]) == []


def test_dropped_request_is_not_computed(clock):
    batch, other = clock.add("batch", BATCH), clock.add("other", BATCH)
    clock.step()
    clock.schedule.drop(batch)
    clock.schedule.drop(batch)  # a second drop changes nothing
    assert (clock.schedule.requests, clock.schedule.tokens) == (1, sum(BATCH))
    assert names(clock.step()) == ["other"]
    assert not is_done(batch)
    assert other.next > 0


def test_request_waits_until_its_first_part(clock):
    clock.add("batch", BATCH)
    clock.add("batch", BATCH)
    assert clock.schedule.requests == 2
    clock.step()
    assert clock.schedule.requests == 1
    assert clock.schedule.tokens < 2 * sum(BATCH)


def test_room_for_the_backlogs_limit_and_for_any_first_request(clock):
    assert clock.schedule.has_room_for([Entry("huge", [512] * 1000)])
    clock.add("batch", [512] * 64)
    rest = policy.HELD_TOKENS - 512 * 64
    assert clock.schedule.has_room_for([Entry("long", [rest])])
    assert not clock.schedule.has_room_for([Entry("long", [rest]), Entry("short", SHORT)])
    for _ in range(policy.HELD_REQUESTS - 1):
        clock.add("short", SHORT)
    assert not clock.schedule.has_room_for([Entry("short", SHORT)])
