"""Latency as interactive services see it: one client that pauses between requests, and Poisson arrivals.

A closed loop without pauses keeps every thread awake. After a pause the threads sleep, and waking them takes time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from build_scripts.benchmarks import report
from build_scripts.benchmarks.http_load import percentile
from build_scripts.benchmarks.report import Bars
from build_scripts.benchmarks.services import Service
from build_scripts.core import markdown

# Approximate minimum of requests in a round; a slow load makes the round longer.
REQUESTS = 10
# Number of clients that keep a server busy; their throughput is its capacity.
BUSY_CLIENTS = 16


@dataclass(frozen=True)
class Load:
    """One client with a pause after each answer, or arrivals at a share of the capacity."""

    pause_ms: float = 0.0
    share: float = 0.0

    def __str__(self) -> str:
        if self.share:
            return f"{self.share:.0%} of capacity"
        return f"pause of {self.pause_ms:g} ms" if self.pause_ms else "no pause"


LOADS = (*(Load(pause_ms=pause) for pause in (10, 100, 500)), *(Load(share=share) for share in (0.1, 0.5, 0.8)))
# Latencies in ms of all rounds, by load and service. A service is missing where the load exceeds its capacity.
Latencies = dict[Load, dict[str, list[float]]]


@dataclass(frozen=True)
class Interactive:
    """capacity: requests/s that the shares refer to."""

    capacity: float
    latencies: Latencies = field(default_factory=dict)


def measure(
    services: Sequence[Service],
    texts: Sequence[str],
    capacities: Mapping[str, float],
    reference: str,
    rounds: int,
    seconds: float,
) -> Interactive:
    """Interleaved rounds. capacities: requests/s, by service name. reference: the service whose capacity counts.

    All services get the same arrivals. A service with less capacity than their rate would only build up a backlog, and
    is left out; so are services that are marked as slow.
    """
    capacity = capacities[reference]
    found: Latencies = {load: {} for load in LOADS}
    steps = [(load, service) for load in LOADS for service in services if not service.slow]
    steps = [(load, one) for load, one in steps if load.share * capacity < capacities[one.name]]
    with tqdm(steps * rounds, unit="level", desc="interactive load", disable=None) as progress:
        for load, service in progress:
            progress.set_description(f"{load}, {service.name}")
            latencies = load_once(service, texts, load, capacity, seconds)
            found[load].setdefault(service.name, []).extend(latencies)
    for services_of in found.values():
        for latencies in services_of.values():
            latencies.sort()
    return Interactive(capacity, found)


def load_once(service: Service, texts: Sequence[str], load: Load, capacity: float, seconds: float) -> list[float]:
    """Latencies in ms. Raises ServingError if a request fails."""
    pause, rate = load.pause_ms / 1e3, load.share * capacity
    answers = service.load(texts, max(seconds, REQUESTS * (1 / rate if rate else pause)), pause=pause, rate=rate)
    return answers.all_ok(f"{service.name}, {load},")


def summary(latencies: Sequence[float]) -> str:
    return " / ".join(report.number(percentile(latencies, share)) for share in (0.5, 0.95)) if latencies else "–"


def heading(load: Load, capacity: float) -> str:
    return f"{load} ({report.number(load.share * capacity)}/s)" if load.share else str(load)


def table(found: Interactive, names: Sequence[str]) -> list[str]:
    """Markdown, to be joined by empty lines: p50 / p95 of each service under each load."""
    rows = [[name, *(summary(found.latencies[load].get(name, [])) for load in LOADS)] for name in names]
    return [
        "Milliseconds, p50 / p95, of one client that pauses after each answer, and of Poisson arrivals. Arrivals do "
        "not wait for earlier answers, and latency counts from the scheduled arrival. Capacity: "
        f"{report.number(found.capacity)} requests/s. A dash: the arrivals exceed this service's capacity.",
        markdown.table(["service", *(heading(load, found.capacity) for load in LOADS)], rows),
    ]


def panels(found: Interactive, names: Sequence[str]) -> list[Bars]:
    """One panel per load: p95 of each service as a bar, p50 / p95 as its note."""
    result = []
    for load in LOADS:
        latencies = [found.latencies[load].get(name, []) for name in names]
        values = [percentile(one, 0.95) for one in latencies]
        title = f"short texts, {heading(load, found.capacity)}"
        unit = "p95 (ms); numbers: p50 / p95"
        result.append(Bars(title, unit, values, [summary(one) for one in latencies]))
    return result


def single_chart(found: Interactive) -> tuple[list[str], list[str], list[Bars]]:
    """Rows, colours and panels of a chart of one service: p50 and p95 of each load."""
    latencies = [next(iter(found.latencies[load].values())) for load in LOADS]
    rows = [heading(load, found.capacity) for load in LOADS]
    values = {name: [percentile(one, share) for one in latencies] for name, share in (("p50", 0.5), ("p95", 0.95))}
    charts = [Bars(name, "latency (ms), less is better", v, list(map(report.number, v))) for name, v in values.items()]
    return rows, [report.BLUE if load.share else report.SKY for load in LOADS], charts
