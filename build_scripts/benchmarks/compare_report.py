"""The report of `compare`: tables and bar charts, with ratios to the first service."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_scripts.benchmarks import interactive, report
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.interactive import Interactive
from build_scripts.benchmarks.mixed_lengths import ALONE, LONG_WORDS, Traffic, Waiting
from build_scripts.core import markdown

BLUES = (report.SKY, report.BLUE)  # ours, the last two
OTHERS = (report.GREY, "#D9A400", report.ORANGE, "#CC79A7", report.GREEN, "#7A5195")
P95 = "p95 latency (ms), less is better"


@dataclass
class Results:
    """One service on one workload: requests/s and p50 of each round, by number of connections."""

    throughput: dict[int, list[float]] = field(default_factory=dict)
    p50_ms: dict[int, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """A whole run.

    manifest: of the release with automatic precision. results: by workload name, in the order of `names`, the baseline
    first. memory: peak MiB. idle_share: of one core, the most that idle services used. stolen_share: of one core, CPU
    steal by the hypervisor.
    """

    manifest: dict
    workloads: Sequence[Workload]
    names: Sequence[str]
    results: Mapping[str, Sequence[Results]]
    waiting: Mapping[Traffic, Mapping[str, Waiting]]
    interactive: Interactive
    agreement: Sequence[str]
    memory: Sequence[float]
    idle_share: float
    stolen_share: float
    seconds: float


def write(directory: Path, run: Measured) -> Path:
    """Print and write the report and its charts."""
    names, manifest = run.names, run.manifest
    sections = ["# This ensemble and the services it replaces", facts(run)]
    for workload in run.workloads:
        name, results = workload.name, run.results[workload.name]
        sections += [f"## {name} texts", workload.describe(manifest["max_length"])]
        sections += [f"![requests per second, {name} texts]({name}.png)", workload_table(names, results)]
        report.bar_chart(directory / name, names, colors(names), workload_panels(name, results))
    shown = [name for name in names if any(name in latencies for latencies in run.interactive.latencies.values())]
    own_colors = [color for name, color in zip(names, colors(names)) if name in shown]
    sections += ["## Interactive load, short texts", "![interactive load](interactive.png)"]
    sections += interactive.table(run.interactive, shown)
    report.bar_chart(directory / "interactive", shown, own_colors, interactive.panels(run.interactive, shown))
    sections += [
        "## Short texts beside long ones",
        f"One client with short texts, a request at a time, while others send texts of {LONG_WORDS} words: "
        "connections × texts a request. Only services that take several texts a request can be sent 64.",
        "![short texts beside long ones](mixed-lengths.png)",
        mixed_table(shown, run.waiting),
        "## Answers and memory",
        markdown.table(
            ["service", "other class ids than the first", "peak memory MiB"],
            [[name, same, f"{peak:.0f}"] for name, same, peak in zip(names, run.agreement, run.memory)],
        ),
        "Memory is the sum of each process's peak resident memory.",
    ]
    report.bar_chart(directory / "mixed-lengths", shown, own_colors, mixed_panels(shown, run.waiting))
    text = "\n\n".join(sections)
    print(text)
    return report.write(directory, text)


def facts(run: Measured) -> str:
    manifest = run.manifest
    rounds = len(next(iter(run.results[run.workloads[0].name][0].throughput.values())))
    return report.facts(
        model=f"{manifest['checkpoint']}, {manifest['architecture']}, {manifest['graph']}",
        max_length=str(manifest["max_length"]),
        precision=f"fp32; chosen automatically for this ensemble: {manifest['precision']}",
        requests="one text each over HTTP with open connections, closed loop unless said otherwise; the same client "
        "for all, in a separate process on the same machine",
        Flask="behind waitress with its default of 4 threads, torch, ONNX Runtime and OpenVINO on all cores; int8 as "
        "quantize_dynamic makes it, a scale a tensor; OpenVINO (`pip install openvino`) computes in bf16 where the CPU "
        "has it",
        Infinity="in fp32 by torch, in a separate environment, with its defaults",
        ensemble="as `make serve` configures it, without the supervisor's probes",
        measured=f"medians of {rounds} interleaved rounds of {run.seconds:g} s; idle services together used at most "
        f"{run.idle_share:.1%} of one core",
        CPU_steal=f"{run.stolen_share:.1%} of one core",
    )


def workload_table(names: Sequence[str], results: Sequence[Results]) -> str:
    """p50 at the lowest level, and requests/s at each, with the ratio to the first service measured there."""
    levels = list(results[-1].throughput)
    header = ["service", f"p50 ms at {levels[0]}", *(f"requests/s at {level}" for level in levels)]
    columns = [p50_column(results, levels[0]), *(throughput_column(results, level) for level in levels)]
    return markdown.table(header, [[name, *(notes[row] for _, notes in columns)] for row, name in enumerate(names)])


def workload_panels(workload: str, results: Sequence[Results]) -> list[report.Bars]:
    """One panel for the latency of one client, one for the throughput of each larger number."""
    first, *levels = results[-1].throughput
    title = f"{workload} texts, concurrency "
    latency = report.Bars(f"{title}{first}", "p50 latency (ms), less is better", *p50_column(results, first))
    return [latency, *(report.Bars(f"{title}{n}", "requests/s", *throughput_column(results, n)) for n in levels)]


def p50_column(results: Sequence[Results], level: int) -> tuple[list[float], list[str]]:
    return column([one.p50_ms.get(level) for one in results], faster=lambda value, first: first / value)


def throughput_column(results: Sequence[Results], level: int) -> tuple[list[float], list[str]]:
    return column([one.throughput.get(level) for one in results], faster=lambda value, first: value / first)


def column(
    rounds: Sequence[Sequence[float] | None], faster: Callable[[float, float], float]
) -> tuple[list[float], list[str]]:
    """A value and a note for each service, with its speed relative to the first; 0 and a dash if not measured."""
    values = [statistics.median(one) if one else 0.0 for one in rounds]
    first = next(value for value in values if value)
    return values, [
        f"{report.number(value)} ({report.ratio(faster(value, first), 1.0)})" if value else "–" for value in values
    ]


def colors(names: Sequence[str]) -> list[str]:
    ours = sum(name.startswith("this ensemble") for name in names)
    return [*OTHERS[: len(names) - ours], *BLUES[-ours:]]


def mixed_table(names: Sequence[str], waiting: Mapping[Traffic, Mapping[str, Waiting]]) -> str:
    """p50 and p95 of the short client and long texts/s, for each kind of traffic."""
    header, rows = ["service"], {name: [name] for name in names}
    for traffic, services in waiting.items():
        header += [f"{traffic}: p50 / p95 ms"] + ([] if traffic == ALONE else ["long texts/s"])
        for name, row in rows.items():
            one = services.get(name)
            row.append(
                " / ".join(report.number(statistics.median(v)) for v in (one.p50_ms, one.p95_ms)) if one else "–"
            )
            if traffic != ALONE:
                row.append(report.number(statistics.median(one.long_texts)) if one else "–")
    return markdown.table(header, list(rows.values()))


def mixed_panels(names: Sequence[str], waiting: Mapping[Traffic, Mapping[str, Waiting]]) -> list[report.Bars]:
    """One panel for each kind of traffic: p95 of the short client."""
    panels = []
    for traffic, services in waiting.items():
        values = [statistics.median(services[name].p95_ms) if name in services else 0.0 for name in names]
        notes = [report.number(value) if value else "–" for value in values]
        panels.append(report.Bars(f"short texts {traffic}", P95, values, notes))
    return panels
