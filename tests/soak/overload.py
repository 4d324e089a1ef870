"""Flood a running ensemble with many times its capacity; measure accepted and refused requests."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import psutil

from build_scripts.benchmarks import http_load
from build_scripts.benchmarks.http_load import Answers, percentile
from build_scripts.benchmarks.services import infer_body
from build_scripts.core.options import Address
from tests.soak.hostile import INFER

# Sixteen clients keep two cores busy. The flood offers twenty times the requests that these clients get answered, over
# twenty times their connections. The server admits about 128 of them and refuses the others.
SATURATING, TIMES = 16, 20
FLOODING = TIMES * SATURATING
SETTLE_S = 5.0


@dataclass(frozen=True)
class Overload:
    """before, after: with SATURATING clients; after: SETTLE_S after the flood. memory_mib: before and after the flood.

    seconds: for which the flood sent; its last answers came later.
    """

    before: Answers
    flood: Answers
    seconds: float
    after: Answers
    memory_mib: tuple[float, float]

    @property
    def others(self) -> int:
        """Answers in the flood with a status other than 200 and 503."""
        return sum(len(ms) for status, ms in self.flood.latencies_ms.items() if status not in (200, 503))


def overload(address: Address, supervisor: int, texts: list[str], seconds: float) -> Overload:
    """Measure at SATURATING clients, flood for `seconds`, wait SETTLE_S, measure again.

    supervisor: the process id whose descendants' memory counts.
    """
    bodies = [infer_body([text]) for text in texts]

    def saturate() -> Answers:
        return http_load.load(address.http_port, INFER, bodies, SETTLE_S, concurrency=SATURATING)

    before = saturate()
    memory_before = resident(supervisor)
    pause = FLOODING / (TIMES * before.rate)
    flood = http_load.load(address.http_port, INFER, bodies, seconds, concurrency=FLOODING, pause=pause)
    memory_after = resident(supervisor)
    time.sleep(SETTLE_S)
    return Overload(before, flood, seconds, saturate(), (memory_before, memory_after))


def resident(supervisor: int) -> float:
    """MiB in memory of the server's processes, without the supervisor; shared pages count once."""
    total = 0
    for process in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def report(found: Overload) -> list[str]:
    """Markdown lines."""
    flood, usual = found.flood, max(found.before.rate, 1e-9)
    accepted, refused = flood.latencies_ms.get(200, []), flood.latencies_ms.get(503, [])
    offered = (len(accepted) + len(refused)) / found.seconds
    return [
        f"{TIMES} times the throughput of {SATURATING} clients, {FLOODING} connections, {found.seconds:.0f} s.",
        "",
        "| | requests | p50, ms | p99, ms | longest, ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(ms)} | {percentile(ms, 0.5):.0f} | {percentile(ms, 0.99):.0f} | {percentile(ms, 1):.0f} |"
            for name, ms in (("accepted", accepted), ("refused with 503", refused))
        ),
        "",
        f"Offered: {offered:.0f} requests/s, {offered / usual:.0f} times the throughput of {SATURATING} clients and "
        f"{offered / max(flood.rate, 1e-9):.0f} times that of the flood; other answers: {found.others}; "
        f"without an answer: {flood.unanswered}.",
        "",
        f"Memory: {found.memory_mib[0]:.0f} MiB before, {found.memory_mib[1]:.0f} after. {SATURATING} clients before: "
        f"{found.before.rate:.0f} requests/s; {SETTLE_S:.0f} s after: {found.after.rate:.0f} "
        f"({found.after.rate / usual:.0%}).",
    ]
