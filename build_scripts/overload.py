"""Flood a running ensemble with many times the clients that saturate it; measure who is served and who is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from build_scripts.hostile import INFER
from build_scripts.settings import Address, ServingError

# Sixteen clients keep both cores busy; the flood has twenty times as many, and they retry at once when refused.
SATURATING, FLOODING = 16, 320
SETTLE_S = 5.0


@dataclass(frozen=True)
class Answers:
    """One run of the client: latencies in ms of the accepted (200) and the refused (503), sorted."""

    seconds: float
    accepted: list[float]
    refused: list[float]
    others: int
    unanswered: int

    @property
    def rate(self) -> float:
        """Accepted requests a second."""
        return len(self.accepted) / self.seconds


@dataclass(frozen=True)
class Overload:
    """before, after: at SATURATING clients; after: SETTLE_S after the flood. memory_mib: before and after it."""

    before: Answers
    flood: Answers
    after: Answers
    memory_mib: tuple[float, float]


def percentile(values: list[float], share: float) -> float:
    """Of sorted values; 0 if there are none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def send(address: Address, bodies: Path, concurrency: int, seconds: float) -> Answers:
    """Load the ensemble in a process of its own. Raises ServingError if the client fails."""
    command = [sys.executable, "-m", "build_scripts.http_load", "--port", str(address.http_port), "--path", INFER]
    command += ["--bodies", str(bodies), "--concurrency", str(concurrency), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ServingError(f"the load client failed: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    latencies = {status: sorted(values) for status, values in answer["latencies_ms"].items()}
    accepted, refused = latencies.pop("200", []), latencies.pop("503", [])
    return Answers(answer["seconds"], accepted, refused, sum(map(len, latencies.values())), answer["unanswered"])


def overload(address: Address, supervisor: int, texts: list[str], seconds: float, directory: Path) -> Overload:
    """Measure at SATURATING clients, flood for `seconds`, wait SETTLE_S, measure again.

    supervisor: the process id whose descendants' memory counts.
    """
    bodies = directory / "flood.json"
    tensors = [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]} for text in texts]
    bodies.write_text(json.dumps([{"inputs": [tensor]} for tensor in tensors]), encoding="utf-8")
    before, memory_before = send(address, bodies, SATURATING, SETTLE_S), resident(supervisor)
    flood, memory_after = send(address, bodies, FLOODING, seconds), resident(supervisor)
    time.sleep(SETTLE_S)
    return Overload(before, flood, send(address, bodies, SATURATING, SETTLE_S), (memory_before, memory_after))


def resident(supervisor: int) -> float:
    """MiB that the server's processes have in memory now, without the supervisor's own."""
    total = 0
    for process in psutil.Process(supervisor).children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def report(found: Overload) -> list[str]:
    """Markdown lines."""
    flood, ratio = found.flood, found.after.rate / max(found.before.rate, 1e-9)
    served, offered = len(flood.accepted), len(flood.accepted) + len(flood.refused)
    return [
        f"{FLOODING} clients for {flood.seconds:.0f} s, where {SATURATING} saturate the server; who is refused retries "
        "at once, without pause.",
        "",
        "| | requests | p50, ms | p99, ms | longest, ms |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {len(ms)} | {percentile(ms, 0.5):.0f} | {percentile(ms, 0.99):.0f} | {percentile(ms, 1):.0f} |"
            for name, ms in (("accepted", flood.accepted), ("refused with 503", flood.refused))
        ),
        "",
        f"Offered: {offered / max(served, 1):.0f} times what was served; other answers: {flood.others}; without an "
        f"answer: {flood.unanswered}. Memory: {found.memory_mib[0]:.0f} MiB before, {found.memory_mib[1]:.0f} after. "
        f"{SATURATING} clients before: {found.before.rate:.0f} requests/s; {SETTLE_S:.0f} s after: "
        f"{found.after.rate:.0f} ({ratio:.0%}).",
    ]
