"""Tell whether a running tritonserver still does its work, by what it answers and what its processes do.

    failure = Watch(view, stop, names, tell).run()

What follows from a failure is `supervisor`'s job; what is a failure, `suspicion`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from build_scripts.core.names import ENSEMBLE
from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.counters import Counters
from build_scripts.serving.keep.inference import Outcome, Probe
from build_scripts.serving.keep.overload import Overload
from build_scripts.serving.keep.processes import STOPPED, Processes
from build_scripts.serving.keep.server_view import ServerView
from build_scripts.serving.keep.suspicion import (
    Suspicion,
    Work,
    limit_for_largest_request,
    model_without_process,
    work_of,
)

# Pause between looks, and time for a probe.
LOOK_EVERY_S, PROBE_TIMEOUT_S = 0.4, 1.0
# Probes since the last answer that fail with an error before the server is given up: if a model's process is gone, and
# if not. Triton calls a living stub unhealthy that gets no CPU for a second.
FAILED_WITHOUT_PROCESS, FAILED_PROBES = 3, 6
# Longest period that a look counts for: a machine that was suspended must not make a server look idle.
LONGEST_PERIOD_S = 1.5

# verdict, detail
Tell = Callable[[str, str], None]


class Watch:
    """Watches one server. All waiting ends early when `stop` is set.

    names: returns its classifiers, to which a release may add. One of them is looked at at a time, so thirty cost no
    more than one. tell: takes the verdict after each look.
    """

    def __init__(self, view: ServerView, stop: threading.Event, names: Callable[[], Sequence[str]], tell: Tell):
        self.view = view
        self.stop = stop
        self.names = names
        self.tell = tell
        self.overload = Overload()
        self.turn = self.failed = 0
        self.counters: Counters | None = None
        # name -> its count of answers at the last look
        self.answered: dict[str, float] = {}
        self.last_answer = view.now()
        self.suspicion = Suspicion()

    def run(self, limit_s: float = float("inf")) -> str | None:
        """Returns why the server must be replaced, or None after `stop` or the time limit."""
        deadline = self.view.now() + limit_s
        self.last_answer = self.view.now()
        while not self.stop.wait(LOOK_EVERY_S) and self.view.now() < deadline:
            if failure := self.look():
                return failure
        return None

    def look(self) -> str | None:
        """One look, with a probe if no request was answered since the last look."""
        if (code := self.view.exit_code()) is not None:
            return f"tritonserver ended with code {code}"
        self.view.hide_shared_memory()  # a release adds segments
        names = list(self.names())
        name = names[self.turn % len(names)]
        if self.counted_an_answer(name):
            self.proven(names)
            return None
        looks: list[tuple[float, Processes]] = []  # at processes: only when there is no answer, as one costs 10 ms

        def look_at_processes() -> None:
            looks.append((self.view.now(), self.view.processes()))

        found = self.view.probe(name, PROBE_TIMEOUT_S, look_at_processes)
        if self.stop.is_set() or self.view.exit_code() is not None:
            return None
        if found.outcome is Outcome.ANSWERED:
            self.counted_an_answer(name)
            self.proven(names)
            return None
        inference = "inference" if names == [ENSEMBLE] else f"inference of {name}"
        if found.outcome is Outcome.FAILED:
            self.failed += 1
            self.tell(verdict.SILENT, f"{inference} fails: {found.reason}")
            killed = model_without_process(name, self.view.processes(), embedded=self.view.embedded)
            if self.failed < (FAILED_WITHOUT_PROCESS if killed else FAILED_PROBES):
                return None
            return (
                f"the process of {killed} was killed, and " if killed else ""
            ) + f"{inference} fails: {found.reason}"
        if not looks or self.view.now() - looks[0][0] < LOOK_EVERY_S:  # refused at once
            look_at_processes()
            self.stop.wait(LOOK_EVERY_S)
        if self.counted_an_answer(name):
            self.proven(names)
            return None
        began, before = looks[-1] if found.overloaded else looks[0]
        return self.judge(name, inference, found, before, min(self.view.now() - began, LONGEST_PERIOD_S))

    def judge(self, name: str, inference: str, found: Probe, before: Processes, period_s: float) -> str | None:
        """What a probe without an answer means."""
        after = self.view.processes()
        embedded = self.view.embedded
        work, seconds = work_of(
            name, self.view.pid, before, after, period_s, refuses=found.overloaded, embedded=embedded
        )
        silence_s = self.view.now() - self.last_answer
        largest_s = limit_for_largest_request(self.counters.seconds_per_token(name) if self.counters else None)
        if self.suspicion.exceeds(work, seconds, largest_s):
            stopped = [
                f"process {pid} of the server is stopped, and " for pid, one in after.items() if one.state == STOPPED
            ]
            killed = model_without_process(name, after, embedded=embedded)
            cause = f"the process of {killed} was killed, and " if killed else "".join(stopped[:1])
            return f"{cause}{inference} hangs: nothing was answered for {silence_s:.1f} s ({found.reason})"
        if found.overloaded:
            self.tell(verdict.OVERLOADED, found.reason)
        elif work is Work.NONE:
            self.tell(verdict.SILENT, f"nothing was answered for {silence_s:.1f} s ({found.reason})")
        else:
            self.tell(verdict.READY, f"busy; the last answer was {silence_s:.1f} s ago")
        return None

    def counted_an_answer(self, name: str) -> bool:
        """Whether others were answered since the last look. After a release, Triton counts from 0 again."""
        counters = self.view.counters()
        if counters is None:
            return False
        self.counters = counters
        self.overload.add(self.view.now(), counters)
        before, self.answered[name] = self.answered.get(name), counters.answered(name)
        return before is not None and before != self.answered[name]

    def proven(self, names: Sequence[str]) -> None:
        """This classifier works: the next look is at another."""
        self.turn += 1
        self.failed = 0
        self.last_answer = self.view.now()
        self.suspicion = Suspicion()
        refusing = self.overload.overloaded(names)
        if refusing:
            self.tell(verdict.OVERLOADED, f"most requests to {', '.join(refusing)} are refused")
        else:
            self.tell(verdict.READY, "inference answers")
