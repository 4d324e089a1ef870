"""What `compare` measured, as tables and bar charts with ratios to the first service."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from build_scripts.benchmarks import report
from build_scripts.benchmarks.corpus import Workload

COLORS = (report.GREY, report.ORANGE, report.GREEN, report.SKY, report.BLUE)


def write(
    directory: Path,
    manifest: dict,
    workloads: Sequence[Workload],
    names: Sequence[str],
    results: Mapping[str, Sequence],
    agreement: Sequence[str],
    memory: Sequence[float],
    seconds: float,
) -> Path:
    """The report, printed and written, and one chart a workload.

    manifest: of the release with automatic precision. results: `compare.Results` by workload name, in the order of
    names, the baseline first. memory: peak MiB.
    """
    rounds = len(next(iter(results[workloads[0].name][0].throughput.values())))
    sections = [
        "# This ensemble and the services it replaces",
        report.facts(
            model=f"{manifest['checkpoint']}, {manifest['architecture']}, {manifest['graph']}",
            max_length=str(manifest["max_length"]),
            precision=f"fp32; chosen automatically for this ensemble: {manifest['precision']}",
            requests="one text each over HTTP with open connections, closed loop; the client is the same for all, in a "
            "process of its own on the same machine, and posts to /classify or to /v2/models/text_classifier/infer",
            Flask="behind waitress with its default of 4 threads, torch and ONNX Runtime on all cores",
            ensemble="as `make serve` configures it, without the supervisor's probes",
            measured=f"medians of {rounds} rounds of {seconds:g} s, all services taking turns",
        ),
    ]
    for workload in workloads:
        sections += [
            f"## {workload.name} texts",
            workload.describe(manifest["max_length"]),
            f"![requests per second, {workload.name} texts]({workload.name}.png)",
            workload_table(names, results[workload.name]),
        ]
        draw(directory / workload.name, workload.name, names, results[workload.name])
    sections += [
        "## Answers and memory",
        report.table(
            ["service", "same class id as the first", "peak memory MiB"],
            [[name, same, f"{peak:.0f}"] for name, same, peak in zip(names, agreement, memory)],
        ),
        "Memory is the sum of each process's peak resident memory.",
    ]
    text = "\n\n".join(sections)
    print(text)
    return report.write(directory, text)


def workload_table(names: Sequence[str], results: Sequence) -> str:
    """p50 at the lowest level, and requests/s at each, with the ratio to the first service."""
    levels = list(results[0].throughput)
    first = statistics.median(results[0].p50_ms[levels[0]])
    header = ["service", f"p50 ms at {levels[0]}", *(f"requests/s at {level}" for level in levels)]
    rows = []
    for name, one in zip(names, results):
        p50 = statistics.median(one.p50_ms[levels[0]])
        cells = [name, f"{report.number(p50)} ({report.ratio(first, p50)})"]
        for level in levels:
            value, baseline = (statistics.median(each.throughput[level]) for each in (one, results[0]))
            cells.append(f"{report.number(value)} ({report.ratio(value, baseline)})")
        rows.append(cells)
    return report.table(header, rows)


def draw(file: Path, workload: str, names: Sequence[str], results: Sequence) -> None:
    """One panel for latency, one for each level's throughput."""
    levels = list(results[0].throughput)
    latencies = [statistics.median(one.p50_ms[levels[0]]) for one in results]
    panels = [
        report.Bars(
            f"{workload} texts, concurrency {levels[0]}", "p50 latency (ms), less is better", latencies,
            [f"{report.number(value)} ({report.ratio(latencies[0], value)})" for value in latencies],
        )
    ]  # fmt: skip
    for level in levels:
        values = [statistics.median(one.throughput[level]) for one in results]
        notes = [f"{report.number(value)} ({report.ratio(value, values[0])})" for value in values]
        panels.append(report.Bars(f"{workload} texts, concurrency {level}", "requests/s", values, notes))
    report.bar_chart(file, names, COLORS, panels)
