"""Time several variants of one job in turns, so that a machine that slows down slows them all."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm import tqdm

ROUNDS = 12
# Before each turn: a pause in which the threads of the one before stop spinning, and one call that is not counted.
PAUSE_S = 0.03
# A turn's calls together take about so long, so that fast variants are timed often enough.
TURN_S, MOST_CALLS = 0.05, 5


def interleaved(variants: dict[str, Callable[[], object]], seconds: float, title: str) -> dict[str, list[float]]:
    """Seconds of every timed call. A variant sits out once its timed calls took `seconds` together.

    One whose first call alone takes longer is not called again: at that size the warm-up no longer matters.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    calls: dict[str, int] = {}
    for name, run in tqdm(variants.items(), desc=f"{title}, first calls", disable=None, leave=False):
        first = timed(run)
        if first > seconds:
            times[name].append(first)
        else:
            calls[name] = calls_a_turn(timed(run))
    for _ in tqdm(range(ROUNDS), desc=title, unit="round", disable=None, leave=False):
        for name, count in calls.items():
            if sum(times[name]) < seconds:
                time.sleep(PAUSE_S)
                variants[name]()
                times[name] += [timed(variants[name]) for _ in range(count)]
    return times


def calls_a_turn(seconds: float) -> int:
    """Of a variant that takes so many seconds a call."""
    return min(MOST_CALLS, max(1, round(TURN_S / seconds)))


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
