"""How long somebody with short texts waits while others send long ones, for each service that `compare` measures."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from build_scripts.benchmarks import http_load
from build_scripts.benchmarks.contenders import Service
from build_scripts.core.errors import ServingError

# Words of a long text: about as many tokens as a BERT reads.
LONG_WORDS = 300
# The long traffic runs for so long before and after the short client's.
LEAD_S = 0.5


@dataclass(frozen=True)
class Traffic:
    """So many connections, each with so many long texts a request; written "beside 4 × 1 long"."""

    connections: int
    texts: int = 1

    def __str__(self) -> str:
        if not self.connections:
            return "alone"
        return f"beside {self.connections} × {self.texts} long"


ALONE = Traffic(0)
TRAFFIC = (ALONE, Traffic(4), Traffic(8), Traffic(1, 64))


@dataclass
class Waiting:
    """What the short client saw, and how many long texts a second were answered: one value a round."""

    p50_ms: list[float] = field(default_factory=list)
    p95_ms: list[float] = field(default_factory=list)
    long_texts: list[float] = field(default_factory=list)


def can_be_sent(service: Service, traffic: Traffic) -> bool:
    return not service.slow and (traffic.texts == 1 or service.body_of_many is not None)


def measure(
    services: Sequence[Service], short: Sequence[str], corpus: Sequence[str], rounds: int, seconds: float
) -> dict[Traffic, dict[str, Waiting]]:
    """Rounds of traffic and service: traffic -> service name -> what was seen."""
    long = long_texts(corpus)
    pairs = [(traffic, service) for traffic in TRAFFIC for service in services if can_be_sent(service, traffic)]
    seen: dict[Traffic, dict[str, Waiting]] = {traffic: {} for traffic in TRAFFIC}
    with tqdm(total=rounds * len(pairs), unit="level", disable=None) as progress:
        for _ in range(rounds):
            for traffic, service in pairs:
                progress.set_description(f"short texts {traffic}, {service.name}")
                load_once(service, traffic, short, long, seconds, seen[traffic].setdefault(service.name, Waiting()))
                progress.update()
    return seen


def long_texts(corpus: Sequence[str]) -> list[str]:
    """64 different texts of LONG_WORDS words, out of the corpus's own."""
    words = " ".join(corpus).split()
    starts = range(0, 64 * 37, 37)
    return [" ".join((words[start % len(words) :] + words)[:LONG_WORDS]) for start in starts]


def load_once(
    service: Service, traffic: Traffic, short: Sequence[str], long: Sequence[str], seconds: float, into: Waiting
) -> None:
    """One client with short texts, a request at a time, in the middle of the long traffic."""
    found: list[http_load.Answers] = []
    background = None
    if traffic.connections:
        many = service.body_of_many
        bodies = [many(list(long[: traffic.texts]))] if many and traffic.texts > 1 else [service.body(x) for x in long]
        background = threading.Thread(
            target=lambda: found.append(
                http_load.load(service.port, service.path, bodies, traffic.connections, seconds + 2 * LEAD_S)
            )
        )
        background.start()
        time.sleep(LEAD_S)
    answers = http_load.load(service.port, service.path, [service.body(text) for text in short], 1, seconds)
    if background:
        background.join()
        if not found:
            raise ServingError(f"the long traffic on {service.name} failed; its own words are above")
    for one in (answers, *found):
        if one.unanswered or set(one.latencies_ms) != {200}:
            counts = {status: len(values) for status, values in one.latencies_ms.items()}
            raise ServingError(f"{service.name} failed {traffic}: {counts}, {one.unanswered} without an answer")
    latencies = answers.latencies_ms[200]
    into.p50_ms.append(statistics.median(latencies))
    into.p95_ms.append(latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))])
    into.long_texts.append(sum(one.rate for one in found) * traffic.texts)
