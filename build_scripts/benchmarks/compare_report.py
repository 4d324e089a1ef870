"""What `compare` measured, as tables and bar charts with ratios to the first service."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from build_scripts.benchmarks import report
from build_scripts.benchmarks.corpus import Workload
from build_scripts.benchmarks.mixed_lengths import ALONE, LONG_WORDS, Traffic, Waiting

BLUES = (report.SKY, report.BLUE)  # ours, the last two
OTHERS = (report.GREY, "#D9A400", report.ORANGE, "#CC79A7", report.GREEN, "#7A5195")


def write(
    directory: Path,
    manifest: dict,
    workloads: Sequence[Workload],
    names: Sequence[str],
    results: Mapping[str, Sequence],
    waiting: Mapping[Traffic, Mapping[str, Waiting]],
    agreement: Sequence[str],
    memory: Sequence[float],
    others_share: float,
    stolen_share: float,
    seconds: float,
) -> Path:
    """The report, printed and written, one chart a workload, and one of short texts beside long ones.

    manifest: of the release with automatic precision. results: `compare.Results` by workload name, in the order of
    names, the baseline first. memory: peak MiB. others_share: of one core, that idle services used at most.
    stolen_share: of one core, that a hypervisor took from this machine.
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
            Flask="behind waitress with its default of 4 threads, torch, ONNX Runtime and OpenVINO on all cores; int8 "
            "as quantize_dynamic makes it, a scale a tensor; OpenVINO (`pip install openvino`) computes in bf16 where "
            "the CPU has it",
            Infinity="in fp32 by torch, in an environment of its own, with its defaults",
            ensemble="as `make serve` configures it, without the supervisor's probes",
            measured=f"medians of {rounds} rounds of {seconds:g} s, all services taking turns; the others together "
            f"used {others_share:.1%} of one core at most while one was measured; the hypervisor took "
            f"{stolen_share:.1%} of one core from this machine",
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
        "## Short texts beside long ones",
        f"One client with short texts, a request at a time, while others send texts of {LONG_WORDS} words: "
        "connections × texts a request. Only services that take several texts a request can be sent 64.",
        "![short texts beside long ones](beside.png)",
        beside_table(names, waiting),
    ]
    draw_beside(directory / "beside", names, waiting)
    sections += [
        "## Answers and memory",
        report.table(
            ["service", "other class ids than the first", "peak memory MiB"],
            [[name, same, f"{peak:.0f}"] for name, same, peak in zip(names, agreement, memory)],
        ),
        "Memory is the sum of each process's peak resident memory.",
    ]
    text = "\n\n".join(sections)
    print(text)
    return report.write(directory, text)


def workload_table(names: Sequence[str], results: Sequence) -> str:
    """p50 at the lowest level, and requests/s at each, with the ratio to the first service that was measured there."""
    levels = list(results[-1].throughput)
    header = ["service", f"p50 ms at {levels[0]}", *(f"requests/s at {level}" for level in levels)]
    columns = [p50_column(results, levels[0]), *(throughput_column(results, level) for level in levels)]
    return report.table(header, [[name, *(notes[row] for _, notes in columns)] for row, name in enumerate(names)])


def p50_column(results: Sequence, level: int) -> tuple[list[float], list[str]]:
    return column([one.p50_ms.get(level) for one in results], faster=lambda value, first: first / value)


def throughput_column(results: Sequence, level: int) -> tuple[list[float], list[str]]:
    return column([one.throughput.get(level) for one in results], faster=lambda value, first: value / first)


def column(
    rounds: Sequence[Sequence[float] | None], faster: Callable[[float, float], float]
) -> tuple[list[float], list[str]]:
    """A value and a note a service, with how many times faster it is than the first; 0 and a dash if not measured."""
    values = [statistics.median(one) if one else 0.0 for one in rounds]
    first = next(value for value in values if value)
    return values, [
        f"{report.number(value)} ({report.ratio(faster(value, first), 1.0)})" if value else "–" for value in values
    ]


def colors(names: Sequence[str]) -> list[str]:
    ours = sum(name.startswith("this ensemble") for name in names)
    return [*OTHERS[: len(names) - ours], *BLUES[-ours:]]


def draw(file: Path, workload: str, names: Sequence[str], results: Sequence) -> None:
    """One panel for the latency of one client, one for the throughput of each larger number."""
    levels = list(results[-1].throughput)
    values, notes = p50_column(results, levels[0])
    title = f"{workload} texts, concurrency {levels[0]}"
    panels = [report.Bars(title, "p50 latency (ms), less is better", values, notes)]
    for level in levels[1:]:
        title = f"{workload} texts, concurrency {level}"
        panels.append(report.Bars(title, "requests/s", *throughput_column(results, level)))
    report.bar_chart(file, names, colors(names), panels)


def beside_table(names: Sequence[str], waiting: Mapping[Traffic, Mapping[str, Waiting]]) -> str:
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
    return report.table(header, [row for row in rows.values() if set(row[1:]) != {"–"}])


def draw_beside(file: Path, names: Sequence[str], waiting: Mapping[Traffic, Mapping[str, Waiting]]) -> None:
    """One panel for each kind of traffic: the 95th percentile of the short client's latency."""
    shown = [name for name in names if any(name in services for services in waiting.values())]
    panels = []
    for traffic, services in waiting.items():
        values = [statistics.median(services[name].p95_ms) if name in services else 0.0 for name in shown]
        notes = [report.number(value) if value else "–" for value in values]
        panels.append(report.Bars(f"short texts {traffic}", "p95 latency (ms), less is better", values, notes))
    report.bar_chart(file, shown, [dict(zip(names, colors(names)))[name] for name in shown], panels)
