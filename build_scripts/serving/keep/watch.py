"""Tell whether a running tritonserver still does its work, by real inferences and by what its processes do meanwhile.

    failure = Watch(server, address, stop).run()

What follows from a failure is `supervisor`'s job.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models, is_model_or_candidate
from build_scripts.core.options import Address
from build_scripts.serving.keep import health
from build_scripts.serving.keep.counters import Executions, executions, success_count
from build_scripts.serving.keep.heartbeat import beat
from build_scripts.serving.keep.processes import CpuSeconds, broken_process, cpu_seconds
from build_scripts.serving.keep.run_state import read_state
from build_scripts.serving.start.tritonserver import TritonProcess

# A killed process fails the next probe at once; a hung one costs PROBE_TIMEOUT_S. Both are noticed within 2 s.
PROBE_EVERY_S, PROBE_TIMEOUT_S = 0.4, 1.0
# A model that computes is left alone even if nothing was answered for this long: a full batch of long texts.
BUSY_LIMIT_S = 60.0
# In NVIDIA's backend tritonserver itself computes, and what else it does, such as to refuse, looks the same. So what
# counts there is what the classifier finishes, and how long a full batch may take: of texts that each take this many
# times as long as they did on average, as one of 512 tokens after headlines.
FULL_BATCH, LONG_TEXT = 64, 40.0
# What tritonserver does beside its models, such as to unpack a body, takes seconds at most.
FRONTEND_LIMIT_S = 10.0
# Below this share of one core over a failed probe, a process does nothing.
IDLE_SHARE = 0.05


class Watch:
    """Watches one server. All waiting ends early when `stop` is set.

    names: its classifiers. A look is at one of them, so that thirty cost no more than one; a process that was killed is
    seen at the next look all the same.
    """

    def __init__(
        self, server: TritonProcess, address: Address, stop: threading.Event, names: Sequence[str] = (ENSEMBLE,)
    ):
        self.server = server
        self.address = address
        self.url = address.http_url
        self.stop = stop
        self.names = list(names)
        self.turn = 0
        self.successes: dict[str, int] = {}
        # Of the classifier whose turn it is; before its turn nobody looked.
        self.last_success = time.monotonic()
        self.executions: Executions | None = None
        self.last_execution = time.monotonic()

    def run(self, limit_s: float = float("inf")) -> str | None:
        """Returns why the server must be replaced, or None when it is asked to stop or the time is over."""
        deadline = time.monotonic() + limit_s
        self.successes = {name: success_count(self.url, name) for name in self.names}
        self.last_success = time.monotonic()
        while not self.stop.wait(PROBE_EVERY_S) and time.monotonic() < deadline:
            beat(self.address.http_port)
            if failure := self.look():
                return failure
        return None

    def look(self) -> str | None:
        """One look, with a probe of our own if nobody else was answered since the last."""
        with contextlib.suppress(ServingError):  # a release may bring another classifier
            self.names = list(read_state(self.address.http_port).releases) or self.names
        name = self.names[self.turn % len(self.names)]
        if self.server.poll() is not None:
            return f"tritonserver ended with code {self.server.poll()}"
        self.server.hide_shared_memory()  # a release adds some
        broken = broken_process(self.server)
        # One that a release ended is collected meanwhile.
        if broken and (ill := self.first_ill()) and broken_process(self.server) == broken:
            return f"{broken}, and {ill} fails"
        if self.others_were_answered(name):
            return None
        before, began = cpu_seconds(self.server), time.monotonic()
        found = interruptible(self.stop, health.probe, self.url, PROBE_TIMEOUT_S, name)
        if found is None:
            return None
        if found.healthy:
            self.next()
            return None
        if broken_process(self.server) not in (broken, None):  # since the probe began: the next look tells
            return None
        if self.server.poll() is not None or self.others_were_answered(name):
            return None
        if found.reason.startswith("HTTP 5") and not found.overloaded:
            return f"{self.inference(name)} fails: {found.reason}"
        if found.overloaded:
            self.stop.wait(PROBE_EVERY_S)  # refused at once, which is too short to see whether anything computes
        period = max(time.monotonic() - began, 0.1)
        silence = time.monotonic() - self.last_success
        if silence > self.patience(name, before, period, found.overloaded):
            return f"{self.inference(name)} hangs: nothing was answered for {silence:.1f} s ({found.reason})"
        return None

    def next(self) -> None:
        """This classifier is well: the next look is at another."""
        self.turn += 1
        self.last_success = time.monotonic()
        if len(self.names) > 1:  # they were another's
            self.executions = None

    def first_ill(self) -> str | None:
        """The first classifier that does not answer, in words."""
        return next(
            (self.inference(name) for name in self.names if not health.probe(self.url, 0.3, name).healthy), None
        )

    def inference(self, name: str) -> str:
        return "inference" if self.names == [ENSEMBLE] else f"inference of {name}"

    def others_were_answered(self, name: str) -> bool:
        """Then there is no need to ask for ourselves. A release makes Triton count from 0 again."""
        counted = success_count(self.url, name)
        if counted in (self.successes.get(name), -1):
            return False
        self.successes[name] = counted
        self.next()
        return True

    def patience(self, name: str, before: CpuSeconds, period_s: float, overloaded: bool) -> float:
        """How long the classifier may not answer, by who has worked since `before`.

        Whatever process works is work: a tokenizer that cuts blanks computes as well as a classifier. Refusals are the
        exception: the tokenizer is busy with them, however dead the classifier is for which the others wait.
        """
        after = cpu_seconds(self.server)
        # A process that ended meanwhile, as at the end of a release, must not make the others look idle.
        worked = {who for who, seconds in after.items() if seconds - before.get(who, 0.0) >= IDLE_SHARE * period_s}
        own = Models(name)
        stubs = {who for who in after if who.model}
        classifiers = {who for who in stubs if is_model_or_candidate(who.model, own.classifier)}
        models = classifiers | {who for who in stubs if is_model_or_candidate(who.model, own.tokenizer)}
        if overloaded:
            worked -= stubs - classifiers
        if worked & models:
            return BUSY_LIMIT_S
        if worked and not classifiers:
            return self.patience_inside(own.classifier)
        return FRONTEND_LIMIT_S if worked and not overloaded else PROBE_TIMEOUT_S

    def patience_inside(self, classifier: str) -> float:
        """The same where tritonserver runs the classifier, and has worked at this or at something else."""
        found, now = executions(self.url, classifier), time.monotonic()
        if found and (self.executions is None or found.batches != self.executions.batches):
            self.last_execution = now
        self.executions = found or self.executions
        if self.executions is None:
            return BUSY_LIMIT_S
        batch = min(max(FULL_BATCH * LONG_TEXT * self.executions.seconds_a_text, FRONTEND_LIMIT_S), BUSY_LIMIT_S)
        return BUSY_LIMIT_S if now - self.last_execution <= batch else batch


def interruptible(stop: threading.Event, function: Callable, *arguments: Any) -> Any:
    """What the function returns; None if `stop` was set first. Then the function is left to end by itself."""
    result: Future = Future()

    def call() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not result.done() and not stop.wait(0.01):
        pass
    return result.result() if result.done() else None
