"""Compare the ensemble with the services it replaces, in one run; writes build/compare/report.md and bar charts.

    python -m build_scripts compare

Machine, model, texts and client are the same for all. Every service runs from the start; one at a time is loaded, in
short interleaved rounds. The report has medians over the rounds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from tqdm import tqdm

from build_scripts.benchmarks import compare_report, corpus, infinity, interactive, mixed_lengths, services
from build_scripts.benchmarks import subprocesses as processes
from build_scripts.benchmarks.bench import checkpoint_directory
from build_scripts.benchmarks.compare_report import Measured, Results
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.flask_service import export_onnx, quantize
from build_scripts.benchmarks.http_load import percentile
from build_scripts.benchmarks.services import Service
from build_scripts.convert.checkpoint import Checkpoint, load
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.releases.pipeline import build
from build_scripts.serving.start.installation import find_installation

OUTPUT = BUILD / "compare"
# Connections, for each workload.
LEVELS = {"short": (1, 4, 16, 64), "lognormal": (1, 4, 16), "long": (1, 4)}
# Fewer for a service that takes half a second for any text.
SLOW_LEVELS = {"short": (1, 4, 16), "lognormal": (1, 4, 16), "long": ()}
ROUNDS = 3
# Two classes may swap through rounding if their probabilities differ by less, in fp32 too.
TIE = 1e-4


def compare(model: str, max_length: int | None, seconds: float) -> Path:
    """Measure all services, about `seconds` a round; returns the report. Raises ServingError."""
    processes.end_on_sigterm()
    directory = checkpoint_directory(model)
    manifests = {}
    for precision in ("fp32", "auto"):
        options = BuildOptions(model, max_length, precision, None, OUTPUT / f"repository-{precision}")
        manifests[precision] = build(options).manifest
    manifest, checkpoint = manifests["auto"], load(directory, max_length)
    workloads = corpus.workloads(lambda texts: checkpoint.tokenize(texts)[1].sum(1).tolist())
    short = workloads[0].texts
    with contextlib.ExitStack() as stack:
        running = start(stack, directory, checkpoint, manifest["precision"])
        names = [service.name for service in running]
        texts = sorted({text for workload in workloads for text in workload.texts})
        agreement = agreements(running, texts[::2])  # half of them: all would take a slow service minutes
        began, stolen = time.monotonic(), psutil.cpu_times().steal
        results, idle_share = measure(running, workloads, seconds)
        capacities = {
            name: percentile(sorted(one.throughput[interactive.BUSY_CLIENTS]), 0.5)
            for name, one in zip(names, results["short"])
        }
        waiting = mixed_lengths.measure(running, short, corpus.corpus(), ROUNDS, seconds)
        paused = interactive.measure(running, short, capacities, names[-1], ROUNDS, seconds)
        # By a hypervisor, summed over all cores; busy-waiting runtimes suffer most.
        stolen_share = (psutil.cpu_times().steal - stolen) / (time.monotonic() - began)
        memory = [processes.peak_memory(service.pid) for service in running]
    measured = Measured(
        manifest, workloads, names, results, waiting, paused, agreement, memory, idle_share, stolen_share, seconds
    )
    return compare_report.write(OUTPUT, measured)


def start(stack: contextlib.ExitStack, directory: Path, checkpoint: Checkpoint, automatic: str) -> list[Service]:
    """All services, the baseline first; they stop when the stack is closed."""
    max_length, onnx = checkpoint.max_length, OUTPUT / "onnx" / "model.onnx"
    flasks = {f"Flask, padded to {max_length}": ("padded", onnx), "Flask, not padded": ("trimmed", onnx)}
    onnx.parent.mkdir(parents=True, exist_ok=True)
    try:
        export_onnx(checkpoint, onnx)
    except ServingError as error:
        print(f"ONNX Runtime and OpenVINO are left out: {error}", file=sys.stderr)
    else:
        int8 = onnx.with_name("model-int8.onnx")
        quantize(onnx, int8)
        flasks |= {"Flask, ONNX Runtime": ("onnx", onnx), "Flask, ONNX Runtime int8": ("onnx-int8", int8)}
        if importlib.util.find_spec("openvino"):
            flasks["Flask, OpenVINO"] = ("openvino", onnx)
    ensembles = {"this ensemble, fp32": "fp32"} if automatic != "fp32" else {}
    ensembles[f"this ensemble, {automatic} (auto)"] = "auto"
    installation, infinity_python = find_installation(), infinity.install(OUTPUT / "infinity")
    starts: list[contextlib.AbstractContextManager[Service]] = []
    for name, (kind, file) in flasks.items():
        log = OUTPUT / f"flask-{kind}.log"
        starts.append(services.flask(name, kind, directory, max_length, file, log))
    if infinity_python:
        log = OUTPUT / "infinity.log"
        starts.append(infinity.infinity(infinity_python, directory, checkpoint.labels, log))
    for name, precision in ensembles.items():
        repository, log = OUTPUT / f"repository-{precision}", OUTPUT / f"ensemble-{precision}.log"
        exact = "fp32" in (precision, automatic)
        starts.append(services.ensemble(name, installation, repository, log, exact=exact))
    return [stack.enter_context(one) for one in tqdm(starts, unit="service", desc="starting", disable=None)]


def agreements(running: Sequence[Service], texts: list[str]) -> list[str]:
    """For each service, the number of texts with a class id other than the baseline's. Also warms all services up.

    Raises ServingError if a service in fp32 disagrees.
    """
    found: list[list[int]] = []
    counts: list[str] = []
    for service in tqdm(running, desc="comparing class ids", unit="service", disable=None):
        answers = service.ask(texts)
        found.append([service.class_id(answer) for answer in answers])
        if not counts:
            margins = [margin(service.probabilities(answer)) for answer in answers]
        differing = [index for index, pair in enumerate(zip(found[0], found[-1])) if pair[0] != pair[1]]
        clear = [index for index in differing if margins[index] > TIE]
        if service.exact and clear:
            raise ServingError(
                f"{service.name} answers {found[-1][clear[0]]} where {running[0].name} answers {found[0][clear[0]]}, "
                f"for {texts[clear[0]]!r}; services that disagree cannot be compared"
            )
        counts.append(f"{len(differing)} of {len(texts)}")
    return counts


def margin(probabilities: Sequence[float]) -> float:
    """Difference between the two largest."""
    first, second = sorted(probabilities)[:-3:-1]
    return first - second


def measure(
    running: Sequence[Service], workloads: Sequence[Workload], seconds: float
) -> tuple[dict[str, list[Results]], float]:
    """Interleaved rounds: workload name -> results in the order of the services.

    And the largest share of one core that all idle services together used in a round: threads that keep spinning after
    a measurement would disturb the next one.
    """
    idle_share = 0.0
    results = {workload.name: [Results() for _ in running] for workload in workloads}
    steps = [
        (workload, level, service, into)
        for workload in workloads
        for level in LEVELS[workload.name]
        for service, into in zip(running, results[workload.name])
        if not service.slow or level in SLOW_LEVELS[workload.name]
    ]
    with tqdm(steps * ROUNDS, unit="level", disable=None) as progress:
        for workload, level, service, into in progress:
            progress.set_description(f"{workload.name}, concurrency {level}, {service.name}")
            began, idle = time.monotonic(), [other for other in running if other is not service]
            used = cpu_seconds(idle)
            answers = service.load(workload.texts, seconds, concurrency=level)
            idle_share = max(idle_share, (cpu_seconds(idle) - used) / (time.monotonic() - began))
            into.p50_ms.setdefault(level, []).append(percentile(answers.all_ok(service.name), 0.5))
            into.throughput.setdefault(level, []).append(answers.rate)
    return results, idle_share


def cpu_seconds(running: Sequence[Service]) -> float:
    return sum(processes.cpu_seconds(service.pid) for service in running)
