"""Sweep a running ensemble with perf_analyzer and write build/perf/report.md, with a plot.

    python -m build_scripts perf

Loads the server that runs on HTTP_PORT, or starts one of its own for as long as it takes. One level is
`perf_analyzer`'s job; the load comes from the same machine and shares its cores.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from tqdm import tqdm

from build_scripts.benchmarks import choices, corpus, own_server, report, starting, subprocesses
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.perf_analyzer import WINDOWS, Level, measure
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address, BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.releases.pipeline import build
from build_scripts.releases.store import live_release, read_manifest
from build_scripts.serving import client
from build_scripts.serving.keep import health
from build_scripts.serving.keep.run_state import RunState, read_state

OUTPUT = BUILD / "perf"
CONCURRENCY = (1, 2, 4, 8, 16)
# A window holds at least so many rounds of requests, however slow the model is.
ROUNDS_A_WINDOW = 3


def perf(options: BuildOptions, address: Address, seconds: float) -> Path:
    """Sweep every workload over every level, `seconds` each; returns the report. Raises ServingError."""
    subprocesses.end_on_sigterm()
    with server(options, address) as (found, starts):
        state = read_state(found.http_port)
        release = served_release(state)
        manifest = read_manifest(release)
        workloads = corpus.workloads(token_counter(release / "tokenizer.json"))
        levels: dict[str, list[Level]] = {workload.name: [] for workload in workloads}
        with tqdm(total=len(workloads) * len(CONCURRENCY), unit="level", disable=None) as progress:
            for workload in workloads:
                # Every length once: the first calls on new shapes are slow.
                list(client.classify(workload.texts, found.grpc_url))
                for concurrency in CONCURRENCY:
                    progress.set_description(f"{workload.name}, concurrency {concurrency}")
                    needed = ROUNDS_A_WINDOW * WINDOWS * longest_round(levels[workload.name], concurrency) / 1e3
                    level = measure(found, workload.texts, concurrency, max(seconds, needed))
                    levels[workload.name].append(level)
                    progress.update()
        short = workloads[0].texts
        chosen = {"Parts of an answer": choices.parts_of_an_answer(found, short, seconds)}
        told = describe(found, starts, state, manifest, seconds)
    chosen["Texts that come again"] = choices.repeated_texts(options, OUTPUT, short, seconds)
    chosen["Several classifiers in one server"] = choices.several_classifiers(options, OUTPUT, short, seconds)
    return write(told, manifest["max_length"], workloads, levels, chosen)


def served_release(state: RunState) -> Path:
    """Raises ServingError if the repository of a running server was removed meanwhile, as `make clean` does."""
    release = live_release(Path(state.repository))
    if release is None:
        raise ServingError(f"{state.repository} holds no release any more, though a server runs from it; restart that")
    return release


@contextlib.contextmanager
def server(options: BuildOptions, address: Address) -> Iterator[tuple[Address, str]]:
    """Where to find the server that runs on `address`, or one that is started now and stopped afterwards.

    And how long it takes to start, in words.
    """
    if health.probe(address.http_url, 5.0).well:
        state = read_state(address.http_port)
        served = read_manifest(served_release(state))["checkpoint"]
        if options.model and served != options.model:
            raise ServingError(
                f"the server on HTTP_PORT={address.http_port} serves {served}, not MODEL={options.model}; "
                "stop it, or name a free HTTP_PORT"
            )
        print(f"measuring the server that runs on {address.http_url}", file=sys.stderr)
        yield replace(address, grpc_port=int(state.grpc_url.rpartition(":")[2])), "not measured, the server ran already"
        return
    # Built here, so that the supervisor that is measured below never had to load torch.
    build(options)
    own = own_server.free_address()
    arguments = own_server.arguments(options, own)
    log = OUTPUT / "serve.log"
    print(f"no server runs on {address.http_url}; starting one", file=sys.stderr)
    starts = starting.describe(arguments, own, options.repository, log, own_server.READY_LIMIT_S)
    with own_server.serving(arguments, log):
        yield own, starts


def token_counter(file: Path):
    """Counts tokens as the server does. file: the release's tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def longest_round(levels: list[Level], concurrency: int) -> float:
    """ms that `concurrency` requests take at most, judging by the levels before: as if nothing ran in parallel."""
    return concurrency * levels[0].p50 if levels else 0.0


def describe(address: Address, starts: str, state: RunState, manifest: dict, seconds: float) -> str:
    """What was measured, and on what. The server still runs."""
    memory = subprocesses.peak_memory(state.pid, children_only=True)
    supervisor = subprocesses.peak_memory(state.pid) - memory
    return report.facts(
        server=f"{triton_version(address)}, load by perf_analyzer (tritonclient) over gRPC on the same machine",
        model=f"{manifest['checkpoint']}, {manifest['architecture']}, {manifest['graph']}",
        precision=f"{manifest['precision']} on {manifest['device']}",
        max_length=str(manifest["max_length"]),
        requests="one text each, closed loop: concurrency is how many are in flight",
        measured=f"{WINDOWS} windows a level, {seconds:g} s or more together",
        peak_memory=f"{memory:.0f} MiB tritonserver with its models' processes, {supervisor:.0f} MiB its "
        "supervisor (sum of each process's peak resident memory)",
        start=starts,
    )


def write(
    facts: str, max_length: int, workloads: list[Workload], levels: dict[str, list[Level]], chosen: dict[str, str]
) -> Path:
    """The report, printed and written, and the chart. chosen: heading -> table."""
    sections = ["# Throughput and latency of the ensemble", facts, "![latency over throughput](latency.png)"]
    for workload in workloads:
        sections += [f"## {workload.name}", workload.describe(max_length), *tables(levels[workload.name])]
    sections.append(
        "The mean is the client's. Queue, tokenizer and classifier come from the server's counters: waiting in both "
        "models' queues, and the models themselves, where a request counts the whole time of the batch it was in. The "
        "rest is the ensemble's scheduling, gRPC and perf_analyzer; it is below zero where the embedded server's "
        "backend answers first and then pauses for the next batch to fill, which the counters call the classifier's. "
        "Batch fill is inferences per execution."
    )
    sections.append(f"Below: short texts, over HTTP; medians of {choices.ROUNDS} rounds that took turns.")
    sections += [part for heading, table in chosen.items() for part in (f"## {heading}", table)]
    text = "\n\n".join(sections)
    print(text)
    report.latency_chart(
        OUTPUT / "latency",
        [
            report.Sweep(
                f"{workload.name} texts",
                CONCURRENCY,
                *([getattr(level, name) for level in levels[workload.name]] for name in ("throughput", "p50", "p99")),
            )
            for workload in workloads
        ],
    )
    return report.write(OUTPUT, text)


def tables(levels: list[Level]) -> list[str]:
    """Throughput and latency, and where the time goes."""
    latency = [
        [
            str(level.concurrency),
            report.number(level.throughput),
            "–".join(map(report.number, level.spread)),
            *(report.number(value) for value in (level.p50, level.p90, level.p95, level.p99)),
        ]
        for level in levels
    ]
    split = [
        [
            str(level.concurrency),
            *map(report.number, (level.mean, level.queue, level.tokenizer.compute_ms, level.classifier.compute_ms)),
            report.number(level.rest),
            *(f"{model.batch_fill:.2f}" for model in (level.tokenizer, level.classifier)),
        ]
        for level in levels
    ]
    return [
        report.table(["concurrency", "texts/s", "its windows", "p50 ms", "p90 ms", "p95 ms", "p99 ms"], latency),
        report.table(
            [
                *("concurrency", "mean ms", "queue", "tokenizer", "classifier", "rest"),
                *("tokenizer batch fill", "classifier batch fill"),
            ],
            split,
        ),
    ]


def triton_version(address: Address) -> str:
    with urllib.request.urlopen(f"{address.http_url}/v2", timeout=10) as response:
        answer = json.load(response)
    return f"{answer['name']} {answer['version']}"
