"""Compare the ensemble with the services it replaces, in one run; writes build/compare/report.md and bar charts.

    python -m build_scripts compare

Same machine, model, texts and client for all. Every service runs from the start; one at a time is loaded, in short
rounds that take turns, and a median over the rounds is reported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm import tqdm

from build_scripts.benchmarks import (
    compare_report,
    contenders,
    corpus,
    http_load,
    infinity,
    mixed_lengths,
    subprocesses,
)
from build_scripts.benchmarks.bench import checkpoint_directory
from build_scripts.benchmarks.contenders import Service
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.flask_service import export_onnx, quantize
from build_scripts.convert.checkpoint import Checkpoint, load
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.releases.pipeline import build
from build_scripts.serving.start.installation import find_installation

OUTPUT = BUILD / "compare"
# Connections, for each workload.
LEVELS = {"short": (1, 4, 16, 64), "lognormal": (1, 4, 16), "long": (1, 4)}
# A service that takes half a second for any text is measured where the others show what they are for.
SLOW_LEVELS = {"short": (1, 4, 16), "lognormal": (1, 4, 16), "long": ()}
ROUNDS = 3
INT8 = "model-int8.onnx"
# Two classes whose probabilities differ by less may change places through rounding, in fp32 too.
TIE = 1e-4


@dataclass
class Results:
    """What one service did on one workload: per concurrency level that it was measured at, one value a round."""

    throughput: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)


def compare(model: str, max_length: int | None, seconds: float) -> Path:
    """Measure all services, about `seconds` a round; returns the report. Raises ServingError."""
    subprocesses.end_on_sigterm()
    directory = checkpoint_directory(model)
    manifests = {}
    for precision in ("fp32", "auto"):
        options = BuildOptions(model, max_length, precision, None, OUTPUT / f"repository-{precision}")
        manifests[precision] = build(options).manifest
    checkpoint = load(directory, max_length)
    onnx = OUTPUT / "onnx" / "model.onnx"
    onnx.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(checkpoint, onnx)
    quantize(onnx, onnx.with_name(INT8))
    workloads = corpus.workloads(token_counter(checkpoint))
    with contextlib.ExitStack() as stack:
        all_services = start(stack, directory, checkpoint, onnx, manifests["auto"]["precision"])
        texts = sorted({text for workload in workloads for text in workload.texts})
        agreement = agreements(all_services, texts[::2])  # all of them would take a slow service minutes
        began, stolen = time.monotonic(), psutil.cpu_times().steal
        results, others_share = measure(all_services, workloads, seconds)
        waiting = mixed_lengths.measure(all_services, workloads[0].texts, corpus.corpus(), ROUNDS, seconds)
        # By a hypervisor, from all cores together; those who wait with threads that spin lose most by it.
        stolen_share = (psutil.cpu_times().steal - stolen) / (time.monotonic() - began)
        memory = [subprocesses.peak_memory(service.pid) for service in all_services]
    return compare_report.write(
        OUTPUT,
        manifests["auto"],
        workloads,
        [one.name for one in all_services],
        results,
        waiting,
        agreement,
        memory,
        others_share,
        stolen_share,
        seconds,
    )


def token_counter(checkpoint: Checkpoint):
    return lambda texts: checkpoint.tokenize(texts)[1].sum(1).tolist()


def start(
    stack: contextlib.ExitStack, directory: Path, checkpoint: Checkpoint, onnx: Path, automatic: str
) -> list[Service]:
    """All services, the baseline first; they stop when the stack is closed."""
    max_length = checkpoint.max_length
    own_python = infinity.install(OUTPUT / "infinity")
    flasks = {
        f"Flask, padded to {max_length}": ("padded", onnx),
        "Flask, not padded": ("trimmed", onnx),
        "Flask, ONNX Runtime": ("onnx", onnx),
        "Flask, ONNX Runtime int8": ("onnx-int8", onnx.with_name(INT8)),
    }
    if importlib.util.find_spec("openvino"):
        flasks["Flask, OpenVINO"] = ("openvino", onnx)
    ensembles = {"this ensemble, fp32": "fp32"} if automatic != "fp32" else {}
    ensembles[f"this ensemble, {automatic} (auto)"] = "auto"
    installation = find_installation()
    started = []
    with tqdm(total=len(flasks) + len(ensembles), unit="service", desc="starting", disable=None) as progress:
        for name, (kind, file) in flasks.items():
            log = OUTPUT / f"flask-{kind}.log"
            started.append(stack.enter_context(contenders.flask(name, kind, directory, max_length, file, log)))
            progress.update()
        if own_python:
            log = OUTPUT / "infinity.log"
            started.append(stack.enter_context(infinity.infinity(own_python, directory, checkpoint.labels, log)))
        for name, precision in ensembles.items():
            repository, log = OUTPUT / f"repository-{precision}", OUTPUT / f"ensemble-{precision}.log"
            exact = precision == "fp32" or automatic == "fp32"
            service = contenders.ensemble(name, installation, repository, log, exact=exact)
            started.append(stack.enter_context(service))
            progress.update()
    return started


def agreements(all_services: Sequence[Service], texts: list[str]) -> list[str]:
    """For each service, how many texts get another class id than the baseline's. Warms everything up on the way.

    Raises ServingError if a service in fp32 disagrees.
    """
    found: list[list[int]] = []
    counts: list[str] = []
    for service in tqdm(all_services, desc="comparing class ids", unit="service", disable=None):
        answers = service.ask(texts)
        found.append([service.class_id(answer) for answer in answers])
        if not counts:
            margins = [margin(service.probabilities(answer)) for answer in answers]
        differing = [index for index, pair in enumerate(zip(found[0], found[-1])) if pair[0] != pair[1]]
        if service.exact and any(margins[index] > TIE for index in differing):
            index = next(index for index in differing if margins[index] > TIE)
            raise ServingError(
                f"{service.name} answers {found[-1][index]} where {all_services[0].name} answers {found[0][index]}, "
                f"for {texts[index]!r}; services that disagree cannot be compared"
            )
        counts.append(f"{len(differing)} of {len(texts)}")
    return counts


def margin(probabilities: Sequence[float]) -> float:
    """Between the most probable class and the next."""
    first, second = sorted(probabilities)[:-3:-1]
    return first - second


def measure(
    all_services: Sequence[Service], workloads: Sequence[Workload], seconds: float
) -> tuple[dict[str, list[Results]], float]:
    """Rounds of workload, concurrency, service: workload name -> results in the order of the services.

    And the largest share of one core that all others together used in a round: threads that go on spinning after their
    service was measured would take it from the next.
    """
    others_share = 0.0
    results = {workload.name: [Results() for _ in all_services] for workload in workloads}
    steps = [
        (workload, level, service, into)
        for _ in range(ROUNDS)
        for workload in workloads
        for level in LEVELS[workload.name]
        for service, into in zip(all_services, results[workload.name])
        if not service.slow or level in SLOW_LEVELS[workload.name]
    ]
    with tqdm(steps, unit="level", disable=None) as progress:
        for workload, level, service, into in progress:
            progress.set_description(f"{workload.name}, concurrency {level}, {service.name}")
            others = [other for other in all_services if other is not service]
            began, used = time.monotonic(), sum(subprocesses.cpu_seconds(other.pid) for other in others)
            throughput, p50_ms = load_once(service, workload.texts, level, seconds)
            used = sum(subprocesses.cpu_seconds(other.pid) for other in others) - used
            others_share = max(others_share, used / (time.monotonic() - began))
            into.throughput.setdefault(level, []).append(throughput)
            into.p50_ms.setdefault(level, []).append(p50_ms)
    return results, others_share


def load_once(service: Service, texts: Sequence[str], concurrency: int, seconds: float) -> tuple[float, float]:
    """Requests a second and median latency (ms) of one run of the client, in a process of its own."""
    bodies = [service.body(text) for text in texts]
    answers = http_load.load(service.port, service.path, bodies, concurrency, seconds)
    if answers.unanswered or set(answers.latencies_ms) != {200}:
        counts = {status: len(values) for status, values in answers.latencies_ms.items()}
        raise ServingError(f"{service.name} failed under load: {counts}, {answers.unanswered} without an answer")
    return answers.rate, statistics.median(answers.latencies_ms[200])
