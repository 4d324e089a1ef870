"""Flood a running ensemble with many times what it can serve; measure who is served and who is refused."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import psutil

from build_scripts.benchmarks import http_load
from build_scripts.benchmarks.http_load import Answers
from build_scripts.core.options import Address
from tests.soak.hostile import INFER

# Sixteen clients keep both cores busy. The flood sends twenty times as many requests as they are served, over twenty
# times their connections. Some 128 of these and a batch or two wait for an answer; the others get refusals.
SATURATING, TIMES = 16, 20
FLOODING = TIMES * SATURATING
SETTLE_S = 5.0


@dataclass(frozen=True)
class Overload:
    """before, after: at SATURATING clients; after: SETTLE_S after the flood. memory_mib: before and after it.

    seconds: for so long the flood sent; its last answers came later.
    """

    before: Answers
    flood: Answers
    seconds: float
    after: Answers
    memory_mib: tuple[float, float]

    @property
    def others(self) -> int:
        """Answers in the flood that were neither given nor refused."""
        return sum(len(ms) for status, ms in self.flood.latencies_ms.items() if status not in (200, 503))


def percentile(values: list[float], share: float) -> float:
    """Of sorted values; 0 if there are none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def overload(address: Address, supervisor: int, texts: list[str], seconds: float) -> Overload:
    """Measure at SATURATING clients, flood for `seconds`, wait SETTLE_S, measure again.

    supervisor: the process id whose descendants' memory counts.
    """
    tensors = [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]} for text in texts]
    bodies = [{"inputs": [tensor]} for tensor in tensors]

    def saturate() -> Answers:
        return http_load.load(address.http_port, INFER, bodies, SATURATING, SETTLE_S)

    before = saturate()
    memory_before = resident(supervisor)
    flood = http_load.load(address.http_port, INFER, bodies, FLOODING, seconds, rate=TIMES * before.rate)
    memory_after = resident(supervisor)
    time.sleep(SETTLE_S)
    return Overload(before, flood, seconds, saturate(), (memory_before, memory_after))


def resident(supervisor: int) -> float:
    """MiB that the server's processes have in memory now, without the supervisor's own; shared pages count once."""
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
        f"{TIMES} times what {SATURATING} clients are served, over {FLOODING} connections, for {found.seconds:.0f} s.",
        "",
        "| | requests | p50, ms | p99, ms | longest, ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(ms)} | {percentile(ms, 0.5):.0f} | {percentile(ms, 0.99):.0f} | {percentile(ms, 1):.0f} |"
            for name, ms in (("accepted", accepted), ("refused with 503", refused))
        ),
        "",
        f"Offered: {offered:.0f} requests/s, {offered / usual:.0f} times what {SATURATING} clients are served and "
        f"{offered / max(flood.rate, 1e-9):.0f} times what was served meanwhile; other answers: {found.others}; "
        f"without an answer: {flood.unanswered}.",
        "",
        f"Memory: {found.memory_mib[0]:.0f} MiB before, {found.memory_mib[1]:.0f} after. {SATURATING} clients before: "
        f"{found.before.rate:.0f} requests/s; {SETTLE_S:.0f} s after: {found.after.rate:.0f} "
        f"({found.after.rate / usual:.0%}).",
    ]
