"""Sweep a running ensemble with perf_analyzer and write build/perf/report.md, with a plot.

    python -m build_scripts perf

Measures the server on HTTP_PORT; if none runs, starts one and stops it afterwards. The load comes from the same machine
and shares its cores.
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

from build_scripts.benchmarks import corpus, interactive, report, services, subprocesses
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.interactive import Interactive
from build_scripts.benchmarks.perf_analyzer import WINDOWS, Level, measure
from build_scripts.core import markdown
from build_scripts.core.errors import ServingError
from build_scripts.core.options import OPTIONS, Address, BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.releases.before_serving import build_or_keep
from build_scripts.releases.store import live_release, read_manifest
from build_scripts.serving import client
from build_scripts.serving.keep import inference
from build_scripts.serving.keep.run_state import RunState, read_state
from build_scripts.serving.start.start_message import READY

OUTPUT = BUILD / "perf"
CONCURRENCY = (1, 2, 4, 8, 16)
# Minimum number of requests of each client in a window, however slow the model is.
REQUESTS_A_WINDOW = 3
START_LIMIT_S = 300.0


def perf(options: BuildOptions, address: Address, seconds: float) -> Path:
    """Sweep every workload over every level, `seconds` each; returns the report. Raises ServingError."""
    subprocesses.end_on_sigterm()
    with server(options, address) as found:
        state = read_state(found.http_port)
        release = served_release(state)
        manifest = read_manifest(release)
        workloads = corpus.workloads(token_counter(release / "tokenizer.json"))
        levels: dict[str, list[Level]] = {workload.name: [] for workload in workloads}
        with tqdm(total=len(workloads) * len(CONCURRENCY), unit="level", disable=None) as progress:
            for workload in workloads:
                # Warm-up: the first call on each new shape is slow.
                list(client.classify(workload.texts, found.grpc_url))
                for concurrency in CONCURRENCY:
                    progress.set_description(f"{workload.name}, concurrency {concurrency}")
                    needed = REQUESTS_A_WINDOW * WINDOWS * longest_round(levels[workload.name], concurrency) / 1e3
                    level = measure(found, workload.texts, concurrency, max(seconds, needed))
                    levels[workload.name].append(level)
                    progress.update()
        service, short = services.triton("this ensemble", found, state.pid), workloads[0].texts
        capacity = service.load(short, seconds / 3, concurrency=interactive.BUSY_CLIENTS).rate
        paused = interactive.measure([service], short, {service.name: capacity}, service.name, 1, seconds / 3)
        facts = describe(found, state, manifest, seconds)
    return write(facts, manifest["max_length"], workloads, levels, paused)


def served_release(state: RunState) -> Path:
    """Raises ServingError if somebody removed the repository of a running server, as `make clean` does."""
    release = live_release(Path(state.repository))
    if release is None:
        raise ServingError(
            f"{state.repository} holds no release any more, though a server runs from it; restart the server"
        )
    return release


@contextlib.contextmanager
def server(options: BuildOptions, address: Address) -> Iterator[Address]:
    """The address of the server that runs on `address`, or of one that runs until the block ends."""
    if inference.probe(address.http_url, 5.0).healthy:
        state = read_state(address.http_port)
        served = read_manifest(served_release(state))["checkpoint"]
        if options.model and served != options.model:
            raise ServingError(
                f"the server on HTTP_PORT={address.http_port} serves {served}, not MODEL={options.model}; "
                "stop it, or name a free HTTP_PORT"
            )
        print(f"measuring the server that runs on {address.http_url}", file=sys.stderr)
        yield replace(address, grpc_port=int(state.grpc_url.rpartition(":")[2]))
        return
    build_or_keep(
        options, named=False
    )  # here, because a supervisor that builds loads torch, and its memory is measured
    print(f"no server runs on {address.http_url}; starting one", file=sys.stderr)
    started = Address("127.0.0.1", *subprocesses.free_ports(3))
    log = OUTPUT / "serve.log"
    with subprocesses.running("build_scripts", ["serve", *serve_arguments(options, started)], log) as process:
        subprocesses.wait_until(
            lambda: READY in log.read_text(encoding="utf-8", errors="replace"), process.poll, log, START_LIMIT_S
        )
        yield started


def serve_arguments(options: BuildOptions, address: Address) -> list[str]:
    values = {**vars(options), **vars(address)}
    del values["name"]  # a name would make `serve` build the default model beside named classifiers
    return [str(part) for field, value in values.items() if value for part in (OPTIONS[field].flag, value)]


def token_counter(file: Path):
    """Counts tokens as the server does. file: the release's tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def longest_round(levels: list[Level], concurrency: int) -> float:
    """Upper bound in ms for `concurrency` requests: the lowest level's p50, as if nothing ran in parallel."""
    return concurrency * levels[0].p50 if levels else 0.0


def describe(address: Address, state: RunState, manifest: dict, seconds: float) -> str:
    """The facts of the report. The server must still run."""
    memory = subprocesses.peak_memory(state.pid, children_only=True)
    supervisor = subprocesses.peak_memory(state.pid) - memory
    return report.facts(
        server=f"{triton_version(address)}, load by perf_analyzer (tritonclient) over gRPC on the same machine",
        model=f"{manifest['checkpoint']}, {manifest['architecture']}, {manifest['graph']}",
        precision=f"{manifest['precision']} on {manifest['device']}",
        max_length=str(manifest["max_length"]),
        requests="one text each, closed loop; concurrency is the number of requests in flight",
        measured=f"{WINDOWS} windows a level, {seconds:g} s or more together",
        peak_memory=f"{memory:.0f} MiB tritonserver with its models' processes, {supervisor:.0f} MiB its "
        "supervisor (sum of each process's peak resident memory)",
    )


def write(
    facts: str, max_length: int, workloads: list[Workload], levels: dict[str, list[Level]], paused: Interactive
) -> Path:
    """Print and write the report and its charts."""
    sections = ["# Throughput and latency of the ensemble", facts, "![latency over throughput](latency.png)"]
    for workload in workloads:
        sections += [f"## {workload.name}", workload.describe(max_length), *tables(levels[workload.name])]
    sections.append(
        "The client measures the mean. Queue, tokenizer and classifier come from the server's counters: the time in "
        "both models' queues, and in the models, where each request counts the whole time of its batch. The rest is "
        "the ensemble's scheduling, gRPC and perf_analyzer. The rest can be negative: the embedded server's backend "
        "answers first and then waits for the next batch to fill, and the counters add that wait to the classifier's "
        "time. Batch fill is inferences per execution."
    )
    sections += ["## Interactive load, short texts over HTTP", "![interactive load](interactive.png)"]
    sections += interactive.table(paused, ["this ensemble"])
    text = "\n\n".join(sections)
    print(text)
    report.bar_chart(OUTPUT / "interactive", *interactive.single_chart(paused))
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
    """Throughput and latency, then the parts of the mean."""
    latency = [
        [
            str(level.concurrency),
            report.number(level.throughput),
            "–".join(map(report.number, level.spread)),
            *map(report.number, (level.p50, level.p90, level.p95, level.p99)),
        ]
        for level in levels
    ]
    parts = [
        [
            str(level.concurrency),
            *map(report.number, (level.mean, level.queue, level.tokenizer.compute_ms, level.classifier.compute_ms)),
            report.number(level.rest),
            *(f"{model.batch_fill:.2f}" for model in (level.tokenizer, level.classifier)),
        ]
        for level in levels
    ]
    counters = "queue", "tokenizer", "classifier", "rest", "tokenizer batch fill", "classifier batch fill"
    return [
        markdown.table(["concurrency", "texts/s", "its windows", "p50 ms", "p90 ms", "p95 ms", "p99 ms"], latency),
        markdown.table(["concurrency", "mean ms", *counters], parts),
    ]


def triton_version(address: Address) -> str:
    with urllib.request.urlopen(f"{address.http_url}/v2", timeout=10) as response:
        answer = json.load(response)
    return f"{answer['name']} {answer['version']}"
