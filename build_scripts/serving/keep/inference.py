"""Ask a server for inferences over HTTP, and judge an unsupervised server by them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.serving.keep.health import HEALTHY, UNHEALTHY, UNREADY
from build_scripts.serving.keep.local_http import exchange
from build_scripts.serving.keep.run_state import read_state

PROBE_TEXT = "health"
# Request id of probes and warm-up. The backend's metrics of answers leave it out.
PROBE_ID = "health"
# Pause between probes while a server starts.
ASK_AGAIN_S = 0.05


class Outcome(Enum):
    """BUSY: no answer to us within the time, but to others. OVERLOADED: refused, because too many requests wait."""

    ANSWERED = "answered"
    OVERLOADED = "overloaded"
    FAILED = "failed"
    SILENT = "silent"
    BUSY = "busy"


class Probe(NamedTuple):
    """One inference. reason: for people."""

    outcome: Outcome
    reason: str

    @property
    def healthy(self) -> bool:
        return self.outcome in (Outcome.ANSWERED, Outcome.BUSY)

    @property
    def overloaded(self) -> bool:
        return self.outcome is Outcome.OVERLOADED


def probe(url: str, timeout_s: float, name: str = ENSEMBLE) -> Probe:
    """One inference within the timeout."""
    text = f"{PROBE_TEXT} {time.monotonic_ns()}"  # never in a response cache
    body = {"id": PROBE_ID, "inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]}
    try:
        status, answer = exchange(f"{url}/v2/models/{name}/infer", json.dumps(body).encode(), timeout_s=timeout_s)
    except OSError as error:
        return Probe(Outcome.SILENT, str(error) or type(error).__name__)
    except ValueError as error:
        return Probe(Outcome.SILENT, f"not an answer of {name}: {error}")
    if status != 200:
        outcome = Outcome.OVERLOADED if status == 503 else Outcome.FAILED
        return Probe(outcome, f"HTTP {status}: {_message(answer)}")
    try:
        outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
        return Probe(Outcome.ANSWERED, f"class id {outputs['CLASS_ID']['data'][0]}")
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Probe(Outcome.FAILED, f"not an answer of {name}: {error!r}")


def wait_until_healthy(url: str, timeout_s: float, name: str = ENSEMBLE) -> Probe:
    """Probe until an inference answers or the time is over; returns the last probe, or a refusal if there was one."""
    deadline, refusal = time.monotonic() + timeout_s, None
    while True:
        found = probe(url, max(0.1, deadline - time.monotonic()), name)
        refusal = found if found.overloaded else refusal
        if found.healthy or time.monotonic() >= deadline:
            return found if found.healthy else refusal or found
        time.sleep(ASK_AGAIN_S)


def ask(url: str, timeout_s: float, name: str) -> Probe:
    """As `wait_until_healthy`; BUSY if the server answered others in the time in which it did not answer this probe."""
    before = success_count(url, name, timeout_s / 4)
    found = wait_until_healthy(url, timeout_s / 2, name)
    if found.outcome is Outcome.SILENT:
        after = success_count(url, name, timeout_s / 4)
        if before is not None and after is not None and before != after:
            return Probe(Outcome.BUSY, f"busy: it answered {after - before} other requests")
    return found


def success_count(url: str, name: str, timeout_s: float) -> int | None:
    """Requests that a classifier has answered since its load; None if the server does not say."""
    try:
        _, answer = exchange(f"{url}/v2/models/{name}/stats", timeout_s=timeout_s)
        return sum(int(one["inference_stats"]["success"]["count"]) for one in json.loads(answer)["model_stats"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report_of_inferences(url: str, timeout_s: float, *, live: bool, names: Sequence[str]) -> tuple[int, str]:
    """As `health.report`, by inferences alone. The line names the classifiers that fail."""
    names = names or served(url) or [ENSEMBLE]
    found = dict(zip(names, ask_all(url, timeout_s, names)))
    failing = {name: one for name, one in found.items() if not (one.healthy or one.overloaded)}
    overloaded = {name: one for name, one in found.items() if one.overloaded}
    if failing:
        return UNHEALTHY, f"not healthy: {_reasons(failing, names)}"
    if overloaded:
        return (HEALTHY if live else UNREADY), f"overloaded: {_reasons(overloaded, names)}"
    return HEALTHY, f"healthy: {_reasons(found, names)}"


def ask_all(url: str, timeout_s: float, names: Sequence[str]) -> list[Probe]:
    """All at once: one that hangs takes no time from the others."""
    if len(names) == 1:
        return [ask(url, timeout_s, names[0])]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(lambda name: ask(url, timeout_s, name), names))


def served(url: str) -> list[str]:
    """The classifiers of a supervised server; none if this user has no supervised server at that port."""
    try:
        return list(read_state(int(url.rpartition(":")[2].partition("/")[0])).releases)
    except (ServingError, OSError, ValueError):
        return []


def _reasons(found: dict[str, Probe], asked: Sequence[str]) -> str:
    """Without names where the default classifier is the only one."""
    if list(asked) == [ENSEMBLE]:
        return found[ENSEMBLE].reason
    return "; ".join(f"{name}: {one.reason}" for name, one in found.items())


def _message(answer: bytes) -> str:
    text = answer[:500].decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text
