"""After a pause the backend uses one thread or all, whichever was faster; without a pause it uses all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from build_scripts.serving.pytorch_backend import idle_threads
from build_scripts.serving.pytorch_backend.idle_threads import RETRY, TRIALS, IdleThreads

SHORT, LONG = 16, 512
WAKING_S, TOKEN_S = 0.012, 0.0001


class Machine:
    """A clock and a number of threads. Every batch after a pause costs WAKING_S if it uses several threads."""

    def __init__(self) -> None:
        self.now, self.threads = 100.0, 4
        self.waking_s = WAKING_S
        self.used: list[int] = []

    def compute(self, choice: IdleThreads, tokens: int, pause: float) -> int:
        """One batch after a pause; returns its number of threads."""
        self.now += pause
        with choice.chosen(tokens):
            waking = self.waking_s if self.threads > 1 and pause > idle_threads.IDLE_S else 0.0
            self.now += waking + tokens * TOKEN_S / self.threads
        return self.threads

    def often(self, choice: IdleThreads, tokens: int, pause: float, batches: int = 200) -> Counter[int]:
        return Counter(self.compute(choice, tokens, pause) for _ in range(batches))


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    set_threads: Callable[[int], None] = lambda threads: setattr(machine, "threads", threads)  # noqa: E731
    monkeypatch.setattr(
        idle_threads, "torch", SimpleNamespace(get_num_threads=lambda: machine.threads, set_num_threads=set_threads)
    )
    monkeypatch.setattr(idle_threads, "time", SimpleNamespace(monotonic=lambda: machine.now))
    return machine


def test_closed_loop_uses_all_threads(machine):
    choice = IdleThreads(4)
    machine.compute(choice, SHORT, 1.0)
    assert set(machine.often(choice, SHORT, 0.0005)) == {4}


@pytest.mark.parametrize(("tokens", "expected"), [(SHORT, 1), (LONG, 4)])
def test_after_a_pause_the_faster_choice_is_used(machine, tokens, expected):
    used = machine.often(IdleThreads(4), tokens, 0.1)
    assert used[expected] >= 200 - TRIALS - 1 - 200 // RETRY


def test_sizes_are_measured_separately(machine):
    choice = IdleThreads(4)
    for tokens, expected in ((SHORT, 1), (LONG, 4), (SHORT, 1), (LONG, 4)):
        assert machine.often(choice, tokens, 0.1).most_common(1)[0][0] == expected


def test_follows_a_machine_that_changes(machine):
    """A virtual CPU that does not sleep wakes its threads at once."""
    choice = IdleThreads(4)
    assert machine.often(choice, SHORT, 0.1).most_common(1)[0][0] == 1
    machine.waking_s = 0.0
    machine.often(choice, SHORT, 0.1, batches=idle_threads.KEPT * RETRY)
    assert machine.often(choice, SHORT, 0.1).most_common(1)[0][0] == 4


def test_one_disturbed_batch_changes_nothing(machine):
    choice = IdleThreads(4)
    machine.often(choice, SHORT, 0.1)
    machine.waking_s = -SHORT * TOKEN_S
    machine.compute(choice, SHORT, 0.1)
    machine.waking_s = WAKING_S
    assert machine.often(choice, SHORT, 0.1, batches=RETRY - 1)[1] >= RETRY - 2


def test_first_batch_of_a_size_is_not_measured(machine):
    """It includes oneDNN's compilation."""
    choice = IdleThreads(4)
    machine.compute(choice, SHORT, 0.1)
    assert not any(choice.measured.values())


def test_one_core_has_no_choice(machine):
    choice = IdleThreads(1)
    assert set(machine.often(choice, SHORT, 0.1)) == {1}
