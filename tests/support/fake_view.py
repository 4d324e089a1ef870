"""A server as its supervisor sees it, made up: its clock advances only while somebody waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from build_scripts.serving.keep.counters import COMPUTE_US, REFUSALS, SUCCESSES, TOKENS, Counters
from build_scripts.serving.keep.inference import Outcome, Probe
from build_scripts.serving.keep.processes import RUNNING, SLEEPING, Process, Processes

ANSWER = Probe(Outcome.ANSWERED, "class id 3")
TIMEOUT = Probe(Outcome.SILENT, "timed out")
OVERLOAD = Probe(Outcome.OVERLOADED, "HTTP 503: overload: 128 requests wait")
ERROR = Probe(Outcome.FAILED, "HTTP 500: stub is not healthy")
TRITON, TOKENIZER, CLASSIFIER = 10, 11, 12


class Clock:
    """Stands for the clock and for the event that ends all waiting: waiting advances the clock at once."""

    def __init__(self) -> None:
        self.seconds, self.stopped = 1000.0, False
        self.at: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> bool:
        end = self.seconds + seconds
        while not self.stopped and (due := [one for one in self.at if one[0] <= end]):
            first = min(due, key=lambda one: one[0])
            self.at.remove(first)
            self.seconds = max(self.seconds, first[0])
            first[1]()
        self.seconds = self.seconds if self.stopped else max(self.seconds, end)
        return self.stopped

    def is_set(self) -> bool:
        return self.stopped

    def set(self) -> None:
        self.stopped = True

    def clear(self) -> None:
        self.stopped = False

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run an action once the time has passed."""
        self.at.append((self.seconds + seconds, action))


@dataclass
class FakeView:
    """answers: classifier name -> the answer to a probe; a SILENT one takes the probe's whole timeout.

    embedded: the classifier has a process. cores: process id -> cores that the process uses. runnable: process ids
    that wait for the CPU. counting: classifier suffix -> requests a second that others get answered; refusing: that
    others get refused.
    """

    clock: Clock
    answers: dict[str, Probe] = field(default_factory=dict)
    table: Processes = field(default_factory=dict)
    embedded: bool = True
    cores: dict[int, float] = field(default_factory=dict)
    runnable: set[int] = field(default_factory=set)
    counting: dict[str, float] = field(default_factory=dict)
    refusing: dict[str, float] = field(default_factory=dict)
    seconds_per_token: float = 0.0001
    code: int | None = None
    listening: bool = True
    probed: list[str] = field(default_factory=list)
    pid: int = TRITON

    def now(self) -> float:
        return self.clock.now()

    def exit_code(self) -> int | None:
        return self.code

    def hide_shared_memory(self) -> None:
        pass

    def listens(self) -> bool:
        return self.listening

    def counters(self) -> Counters:
        values = {(COMPUTE_US, "classifier"): 1e6 * self.seconds_per_token * 1000, (TOKENS, "tokenizer"): 1000.0}
        for suffix, rate in self.counting.items():
            values[SUCCESSES, f"classifier{suffix}"] = float(int(rate * self.now()))
        for suffix, rate in self.refusing.items():
            values[REFUSALS, f"tokenizer{suffix}"] = float(int(rate * self.now()))
        return Counters(values)

    def processes(self) -> Processes:
        found = {}
        for pid, one in self.table.items():
            state = RUNNING if pid in self.runnable and one.state == SLEEPING else one.state
            found[pid] = one._replace(state=state, cpu_s=self.cores.get(pid, 0.0) * self.now())
        return found

    def probe(self, name: str, timeout_s: float, slow: Callable[[], None] = lambda: None) -> Probe:
        self.probed.append(name)
        found = self.answers.get(name, ANSWER)
        if found.outcome is Outcome.SILENT:
            self.clock.wait(0.1)
            slow()
            self.clock.wait(timeout_s - 0.1)
        return found


def embedded_processes() -> Processes:
    """tritonserver with a stub for each model."""
    return {
        TRITON: Process("", SLEEPING, 0.0),
        TOKENIZER: Process("tokenizer", SLEEPING, 0.0),
        CLASSIFIER: Process("classifier", SLEEPING, 0.0),
    }
