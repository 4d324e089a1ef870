"""What a choice costs or gains, for the report of `perf`: the parts of an answer, repeated texts, several classifiers.

The variants of a choice are loaded over HTTP in rounds that take turns; medians over the rounds are reported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from build_scripts.benchmarks import own_server, report
from build_scripts.benchmarks.contenders import infer_body
from build_scripts.benchmarks.http_load import Answers, load
from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.options import Address, BuildOptions
from build_scripts.releases.pipeline import build
from build_scripts.releases.store import releases_directory
from build_scripts.serving.swap.release import memory_of

ROUNDS = 3
CLIENTS = 16
# How many classifiers of a server are asked at once; the last is how many there are.
ASKED = (1, 2, 8)
# More than one round sends.
ZIPF_TEXTS, ZIPF_SEED, DRAWN = 2200, 7, 10_000
CACHE = "64M"

Variant = Callable[[], list[Answers]]


def table(first: str, variants: dict[str, Variant]) -> str:
    """Load the variants in turns. Raises ServingError if a request failed."""
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    turns = [(name, variant) for _ in range(ROUNDS) for name, variant in variants.items()]
    for name, variant in tqdm(turns, desc=first, unit="turn", disable=None):
        seen[name].append(summary(variant()))
    medians = {name: map(statistics.median, zip(*rows)) for name, rows in seen.items()}
    rows = [[name, *map(report.number, values)] for name, values in medians.items()]
    return report.table([first, "requests/s", "p50 ms", "p99 ms"], rows)


def summary(answers: Sequence[Answers]) -> tuple[float, float, float]:
    """Requests/s of all together, p50 and p99 in ms."""
    if any(one.unanswered or set(one.latencies_ms) != {200} for one in answers):
        counts = [{status: len(values) for status, values in one.latencies_ms.items()} for one in answers]
        raise ServingError(f"requests failed under load: {counts}")
    latencies = sorted(ms for one in answers for ms in one.latencies_ms[200])
    return sum(one.rate for one in answers), statistics.median(latencies), latencies[int(0.99 * len(latencies))]


def loaded(
    address: Address, bodies: Sequence[dict], seconds: float, clients: int = 1, name: str = ENSEMBLE
) -> list[Answers]:
    return [load(address.http_port, f"/v2/models/{name}/infer", bodies, clients, seconds)]


def parts_of_an_answer(address: Address, texts: Sequence[str], seconds: float) -> str:
    """One client, which asks for all outputs, for the class id alone, or for a label."""

    def asked(outputs: list[dict]) -> Variant:
        bodies = [{**infer_body([text]), "outputs": outputs} for text in texts]
        return lambda: loaded(address, bodies, seconds)

    return table(
        "outputs",
        {
            "all": asked([{"name": name} for name in ("CLASS_ID", "PROBABILITIES", "TOKENS", "TRUNCATED")]),
            "CLASS_ID": asked([{"name": "CLASS_ID"}]),
            "the best label": asked([{"name": "PROBABILITIES", "parameters": {"classification": 1}}]),
        },
    )


def repeated_texts(options: BuildOptions, directory: Path, texts: Sequence[str], seconds: float) -> str:
    """Servers without and with a cache; texts that come again as words do (Zipf), and such that never do."""
    numbered = (f"{number}. {text}" for number in itertools.count() for text in texts)
    distinct = list(itertools.islice(numbered, ZIPF_TEXTS))
    weights = [1 / rank for rank in range(1, ZIPF_TEXTS + 1)]
    source = random.Random(ZIPF_SEED)
    source.shuffle(distinct)

    def again() -> list[str]:
        return source.choices(distinct, weights, k=DRAWN)

    def never() -> list[str]:
        return list(itertools.islice(numbered, DRAWN))

    with contextlib.ExitStack() as stack:
        servers = {}
        for name, cache in (("no cache", ""), (f"CACHE={CACHE}", CACHE)):
            servers[name] = own_server.free_address()
            asked = own_server.arguments(options, servers[name], cache)
            stack.enter_context(own_server.serving(asked, directory / f"serve-cache-{cache or 'none'}.log"))

        def drawn(address: Address, draw: Callable[[], list[str]], clients: int) -> Variant:
            return lambda: loaded(address, [infer_body([text]) for text in draw()], seconds, clients)

        variants = {
            f"{how}, {clients} at once, {name}": drawn(address, draw, clients)
            for clients in (1, CLIENTS)
            for how, draw in (("as words do", again), ("never", never))
            for name, address in servers.items()
        }
        return table("texts come again", variants)


def several_classifiers(options: BuildOptions, directory: Path, texts: Sequence[str], seconds: float) -> str:
    """A server with eight of the same model, of which one, two and all are asked by the same number of clients."""
    options = replace(options, repository=directory / "repository-several")
    shutil.rmtree(options.repository, ignore_errors=True)
    names = [ENSEMBLE, *(f"copy_{number}" for number in range(2, ASKED[-1] + 1))]
    release = build(options).release
    for name in names[1:]:  # a release that is there already is not built again
        shutil.copytree(release, releases_directory(options.repository, name) / release.name, copy_function=os.link)
        build(replace(options, name=name))
    bodies = [infer_body([text]) for text in texts]
    address = own_server.free_address()

    def asked(count: int) -> Variant:
        def run() -> list[Answers]:
            with ThreadPoolExecutor(count) as pool:
                waiting = [
                    pool.submit(loaded, address, bodies, seconds, CLIENTS // count, one) for one in names[:count]
                ]
                return [answers for one in waiting for answers in one.result()]

        return run

    with own_server.serving(own_server.arguments(options, address), directory / "serve-several.log") as supervisor:
        found = table("classifiers asked", {f"{count} of {len(names)}": asked(count) for count in ASKED})
        sizes = [sum(memory_of(supervisor, Models(name)).values()) for name in names]
    return f"{found}\n\nEach has {min(sizes)} to {max(sizes)} MiB of memory of its own."
