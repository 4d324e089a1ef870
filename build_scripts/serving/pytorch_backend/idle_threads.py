"""Choose one thread or all threads for a batch after a pause, by measured times.

Waking a thread on an idle virtual CPU takes about 0.2 ms, longer than OpenMP's threads spin. So after a pause, each of
about sixty parallel regions of a forward pass waits for a wake-up: a batch of 2 ms takes 15 ms. A single thread waits
for nothing. In a closed loop the cores stay awake, and all threads are used. The batch size up to which one thread is
faster depends on the model, the cores and the hypervisor, so both choices are timed on real batches.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterator

import torch

# A closed loop never pauses for this long between two batches.
IDLE_S = 0.002
# Measurements kept per choice. The median of five tolerates two outliers.
KEPT = 5
# Measurements of each choice before the faster one is preferred. Every RETRY-th batch measures the slower one again.
TRIALS, RETRY = 2, 64


class IdleThreads:
    """The choice for one instance, by batch size. threads: number of threads when all are used."""

    def __init__(self, threads: int) -> None:
        self.choices = (1, threads)
        self.last_end = 0.0
        # Seconds per token, by (size class, number of threads). A size class spans a factor of two in tokens.
        self.measured: defaultdict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.batches: defaultdict[int, int] = defaultdict(int)
        # Pairs (tokens, threads) computed before. The first batch of a pair is not measured: oneDNN compiles for it,
        # which takes as long as the batch.
        self.compiled: set[tuple[int, int]] = set()

    @contextlib.contextmanager
    def chosen(self, tokens: int) -> Iterator[None]:
        """Context in which the calling thread computes a batch of `tokens`, with the better number of threads."""
        began = time.monotonic()
        idle = began - self.last_end > IDLE_S
        threads = self.choose(tokens) if idle and self.choices[-1] > 1 else self.choices[-1]
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            self.last_end = time.monotonic()
            if (tokens, threads) not in self.compiled:
                self.compiled.add((tokens, threads))
            elif idle:
                self.measured[tokens.bit_length(), threads].append((self.last_end - began) / max(tokens, 1))

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Context in which the calling thread computes with one OpenMP thread, beside another batch."""
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        yield

    def choose(self, tokens: int) -> int:
        """Number of threads for a batch after a pause."""
        size = tokens.bit_length()
        self.batches[size] += 1
        taken = {threads: self.measured[size, threads] for threads in self.choices}
        rare = min(taken, key=lambda threads: len(taken[threads]))
        if len(taken[rare]) < TRIALS:
            return rare
        faster, slower = sorted(taken, key=lambda threads: statistics.median(taken[threads]))
        return slower if self.batches[size] % RETRY == 0 else faster
