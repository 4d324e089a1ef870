"""Latency of a client with short texts while others send long ones, for each service that `compare` measures."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from build_scripts.benchmarks import http_load
from build_scripts.benchmarks.http_load import percentile
from build_scripts.benchmarks.services import Service
from build_scripts.core.errors import ServingError

# Length of a long text: about the 512 tokens that a BERT reads.
LONG_WORDS = 300
# The long traffic starts this long before the short client, and ends this long after it.
LEAD_S = 0.5


@dataclass(frozen=True)
class Traffic:
    """A number of connections, and the long texts of each request; written "beside 4 × 1 long"."""

    connections: int
    texts: int = 1

    def __str__(self) -> str:
        return f"beside {self.connections} × {self.texts} long" if self.connections else "alone"


ALONE = Traffic(0)
TRAFFIC = (ALONE, Traffic(4), Traffic(8), Traffic(1, 64))


@dataclass
class Waiting:
    """Latencies of the short client, and long texts answered per second: one value a round."""

    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    long_texts: list[float] = field(default_factory=list)


def takes(service: Service, traffic: Traffic) -> bool:
    return not service.slow and (traffic.texts == 1 or service.body_of_many is not None)


def measure(
    services: Sequence[Service], short: Sequence[str], corpus: Sequence[str], rounds: int, seconds: float
) -> dict[Traffic, dict[str, Waiting]]:
    """Interleaved rounds: traffic -> service name -> results."""
    long = long_texts(corpus)
    found: dict[Traffic, dict[str, Waiting]] = {traffic: {} for traffic in TRAFFIC}
    pairs = [(traffic, service) for traffic in TRAFFIC for service in services if takes(service, traffic)]
    with tqdm(pairs * rounds, unit="level", disable=None) as progress:
        for traffic, service in progress:
            progress.set_description(f"short texts {traffic}, {service.name}")
            load_once(service, traffic, short, long, seconds, found[traffic].setdefault(service.name, Waiting()))
    return found


def long_texts(corpus: Sequence[str]) -> list[str]:
    """64 different texts of LONG_WORDS words, made of the corpus."""
    words = " ".join(corpus).split()
    starts = range(0, 64 * 37, 37)
    return [" ".join((words[start % len(words) :] + words)[:LONG_WORDS]) for start in starts]


def load_once(
    service: Service, traffic: Traffic, short: Sequence[str], long: Sequence[str], seconds: float, into: Waiting
) -> None:
    """One client with short texts, a request at a time, in the middle of the long traffic."""
    found: list[http_load.Answers] = []

    def send_long() -> None:
        many = service.body_of_many
        bodies = [many(list(long[: traffic.texts]))] if many and traffic.texts > 1 else [service.body(x) for x in long]
        length = seconds + 2 * LEAD_S
        found.append(http_load.load(service.port, service.path, bodies, length, concurrency=traffic.connections))

    background = threading.Thread(target=send_long) if traffic.connections else None
    if background:
        background.start()
        time.sleep(LEAD_S)
    answers = service.load(short, seconds)
    if background:
        background.join()
        if not found:
            raise ServingError(f"the long traffic on {service.name} failed; the error is above")
    for one in found:
        one.all_ok(f"{service.name} {traffic}")
    latencies = answers.all_ok(f"{service.name} {traffic}")
    into.p50_ms.append(percentile(latencies, 0.5))
    into.p95_ms.append(percentile(latencies, 0.95))
    into.long_texts.append(sum(one.rate for one in found) * traffic.texts)
