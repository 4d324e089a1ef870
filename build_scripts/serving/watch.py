"""Tell whether a running tritonserver still does its work, by real inferences and by what its processes do meanwhile.

    failure = Watch(server, address, stop).run()

What follows from a failure is `supervisor`'s job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from build_scripts.serving import health
from build_scripts.serving.monitor import CpuSeconds, Executions, broken_process, cpu_seconds, executions, success_count
from build_scripts.serving.run_state import beat
from build_scripts.serving.triton import TritonProcess
from build_scripts.settings import CLASSIFIER, Address

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
    """Watches one server. All waiting ends early when `stop` is set."""

    def __init__(self, server: TritonProcess, address: Address, stop: threading.Event):
        self.server = server
        self.address = address
        self.url = address.http_url
        self.stop = stop
        self.successes = -1
        self.last_success = time.monotonic()
        self.executions: Executions | None = None
        self.last_execution = time.monotonic()

    def run(self, limit_s: float = float("inf")) -> str | None:
        """Returns why the server must be replaced, or None when it is asked to stop or the time is over."""
        deadline = time.monotonic() + limit_s
        self.successes, self.last_success = success_count(self.url), time.monotonic()
        while not self.stop.wait(PROBE_EVERY_S) and time.monotonic() < deadline:
            beat(self.address.http_port)
            if failure := self.look():
                return failure
        return None

    def look(self) -> str | None:
        """One look, with a probe of our own if nobody else was answered since the last."""
        if self.server.poll() is not None:
            return f"tritonserver ended with code {self.server.poll()}"
        self.server.hide_shared_memory()  # a release adds some
        broken = broken_process(self.server)
        if broken and not health.probe(self.url, 0.3).well:
            return f"{broken}, and inference fails"
        if self.others_were_answered():
            return None
        before, began = cpu_seconds(self.server), time.monotonic()
        found = interruptible(self.stop, health.probe, self.url, PROBE_TIMEOUT_S)
        if found is None:
            return None
        if found.well:
            self.last_success = time.monotonic()
            return None
        if broken := broken_process(self.server):  # since the probe began
            return f"{broken}, and inference fails"
        if self.server.poll() is not None or self.others_were_answered():
            return None
        if found.reason.startswith("HTTP 5") and not found.overloaded:
            return f"inference fails: {found.reason}"
        if found.overloaded:
            self.stop.wait(PROBE_EVERY_S)  # refused at once, which is too short to see whether anything computes
        period = max(time.monotonic() - began, 0.1)
        silence = time.monotonic() - self.last_success
        if silence > self.patience(before, period, found.overloaded):
            return f"inference hangs: nothing was answered for {silence:.1f} s ({found.reason})"
        return None

    def others_were_answered(self) -> bool:
        """Then there is no need to ask for ourselves. A release makes Triton count from 0 again."""
        counted = success_count(self.url)
        if counted in (self.successes, -1):
            return False
        self.successes, self.last_success = counted, time.monotonic()
        return True

    def patience(self, before: CpuSeconds, period_s: float, overloaded: bool) -> float:
        """How long nothing may be answered, by who has worked since `before`.

        Whatever process works is work: a tokenizer that cuts blanks computes as well as a classifier. Refusals are the
        exception: the tokenizer is busy with them, however dead the classifier is for which the others wait.
        """
        after = cpu_seconds(self.server)
        # A process that ended meanwhile, as at the end of a release, must not make the others look idle.
        worked = {who for who, seconds in after.items() if seconds - before.get(who, 0.0) >= IDLE_SHARE * period_s}
        classifiers = {who for who in after if who.model.startswith(CLASSIFIER)}  # a release loads a second one
        models = {who for who in after if who.model}
        if overloaded:
            worked -= models - classifiers
        if worked & models:
            return BUSY_LIMIT_S
        if worked and not classifiers:
            return self.patience_inside()
        return FRONTEND_LIMIT_S if worked and not overloaded else PROBE_TIMEOUT_S

    def patience_inside(self) -> float:
        """The same where tritonserver runs the classifier, and has worked at this or at something else."""
        found, now = executions(self.url), time.monotonic()
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
