"""The tables of `bench`: time, share of the machine's peak, and whether cost follows tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from build_scripts.benchmarks import report
from build_scripts.benchmarks.runtimes import PEAK_SHAPE, Seconds
from build_scripts.core import markdown

# Suffix of the batch with the same number of texts and tokens in equal lengths.
EQUAL = ", equal"


@dataclass(frozen=True)
class Workload:
    """A batch of texts of `lengths` tokens.

    flops, equal_flops: operations of the packed graph for the batch and for equal lengths; None for a traced graph.
    """

    name: str
    lengths: list[int]
    flops: int | None
    equal_flops: int | None


def sections(workloads: Sequence[Workload], seconds: Seconds, precisions: Sequence[str]) -> list[str]:
    """Markdown, to be joined by empty lines. seconds: the baseline first; "peak …" are the large products."""
    ms = {
        name: {batch: 1e3 * statistics.median(times) for batch, times in batches.items()}
        for name, batches in seconds.items()
        if not name.startswith("peak")
    }
    baseline, *others = ms
    mixed = [one for one in workloads if one.name + EQUAL in seconds[precisions[0]]]
    found = [
        "## Time",
        f"Milliseconds a batch, medians; in parentheses the share of {baseline}'s time. fp32, bf16 and fp16 are this "
        "project's file with padded inputs, as it is served; HF is Hugging Face's eager model, trimmed to the longest "
        "text or padded. ONNX Runtime and OpenVINO run the exported model on trimmed inputs, OpenVINO in the precision "
        "that it chooses.",
        markdown.table(
            ["batch", "tokens", f"{baseline} ms", *(f"{name} ms" for name in others)],
            [times(one, {name: batches[one.name] for name, batches in ms.items()}) for one in workloads],
        ),
    ]
    if workloads[0].flops is not None:
        found += share_of_peak(workloads, {precision: ms[precision] for precision in precisions}, seconds)
    return [
        *found,
        "## Cost follows tokens",
        "Time of each mixed batch relative to the same number of texts and tokens in equal lengths: 1.00× means that "
        "unequal lengths cost nothing. Attention is quadratic, so a few long texts need more operations than many "
        "equal ones.",
        markdown.table(
            ["batch", *(f"{precision} time" for precision in precisions), "operations"],
            [evenness(one, [ms[precision] for precision in precisions]) for one in mixed],
        ),
    ]


def times(one: Workload, ms: dict[str, float]) -> list[str]:
    """One row; ms: of each runtime, the baseline first."""
    first, *others = ms.values()
    cells = [f"{report.number(value)} ({value / first:.2f})" for value in others]
    return [one.name, str(sum(one.lengths)), report.number(first), *cells]


def share_of_peak(workloads: Sequence[Workload], ms: dict[str, dict[str, float]], seconds: Seconds) -> list[str]:
    """ms: of the files, by precision and batch."""
    # A ceiling, so the fastest product of the whole run. fp16 weights are multiplied in fp32.
    peaks = {
        precision: 2 * math.prod(PEAK_SHAPE) / min(map(min, seconds[f"peak {precision}"].values()))
        for precision in ms
        if precision != "fp16"
    }
    rows = []
    for one in workloads:
        flops = one.flops or 0
        cells = [one.name, report.number(flops / 1e9)]
        for precision, batches in ms.items():
            rate = 1e3 / batches[one.name]
            peak = peaks.get(precision, peaks["fp32"])
            cells += [report.number(sum(one.lengths) * rate), f"{flops * rate / peak:.0%}"]
        rows.append(cells)
    return [
        "## Share of the machine's peak",
        f"The peak, {' and '.join(f'{report.number(peak / 1e9)} GFLOP/s in {name}' for name, peak in peaks.items())}, "
        f"is the fastest {' × '.join(map(str, PEAK_SHAPE))} product of the file's oneDNN kernel in this run. Counted: "
        "the linear layers for real tokens, attention within each text, and in the last layer the first token only. "
        "Not counted: padding, embeddings, LayerNorm, GELU, softmax.",
        markdown.table(["batch", "GFLOP", *(f"{p} {what}" for p in ms for what in ("tokens/s", "share"))], rows),
    ]


def evenness(one: Workload, ms: Sequence[dict[str, float]]) -> list[str]:
    ratios = [f"{batches[one.name] / batches[one.name + EQUAL]:.2f}×" for batches in ms]
    operations = f"{one.flops / one.equal_flops:.2f}×" if one.flops and one.equal_flops else "–"
    return [one.name, *ratios, operations]
