"""How the classifier's cost grows: over the length of a text, the texts of a batch, and the number of labels.

Each curve stands beside the roofline: the time that the same operations would take at the machine's peak. Measures and
draws; `bench` calls it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from build_scripts.benchmarks import report
from build_scripts.benchmarks.flops import classifier_flops
from build_scripts.benchmarks.report import Curve
from build_scripts.benchmarks.timing import interleaved
from build_scripts.graph.classifier import TextClassifier
from build_scripts.graph.packed_bert import PackedBert
from build_scripts.graph.parts import BertParts

LENGTHS = (8, 16, 32, 64, 128, 256, 512)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LABELS = (2, 10, 100, 1_000, 10_000)
# Tokens of a text where something else varies.
SHORT = 16
# Of each point; a curve needs less care than a table.
SECONDS = 0.4

Inputs = Callable[[list[int]], tuple[torch.Tensor, torch.Tensor]]


def curves(
    files: dict[str, nn.Module], parts: BertParts, inputs: Inputs, max_length: int, peaks: dict[str, float]
) -> list[Curve]:
    """files: the loaded classifier, by precision. inputs: makes a batch of texts of these lengths. peaks: FLOP/s."""

    def at_peak(lengths: list[int], own: BertParts = parts) -> dict[str, float]:
        return {precision: 1e3 * classifier_flops(own, lengths) / peak for precision, peak in peaks.items()}

    lengths = [length for length in LENGTHS if length <= max_length]
    short = min(SHORT, max_length)
    panels = [
        ("one text", "tokens", lengths, [[length] for length in lengths]),
        (f"texts of {short} tokens", "texts in a batch", list(BATCHES), [[short] * texts for texts in BATCHES]),
    ]
    found = []
    for title, unit, values, batches in panels:
        points = []
        for value, batch in zip(values, batches):
            arguments = inputs(batch)
            runs: dict[str, Callable[[], object]] = {name: partial(run, *arguments) for name, run in files.items()}
            points.append(medians(runs, f"{title}, {value} {unit}"))
        found.append(Curve(title, unit, values, joined(points), joined([at_peak(batch) for batch in batches])))
    arguments, points, rooflines = inputs([short]), [], []
    for labels in LABELS:
        own = replace(parts, classifier=nn.Linear(parts.classifier.in_features, labels))
        run = partial(with_labels(own, max_length), *arguments)
        points.append(medians({"fp32": run}, f"one text, {labels} labels"))
        rooflines.append({"fp32": at_peak([short], own)["fp32"]})
    found.append(Curve(f"one text of {short} tokens", "labels", LABELS, joined(points), joined(rooflines)))
    return found


def with_labels(parts: BertParts, max_length: int) -> torch.jit.ScriptModule:
    """The classifier in fp32, with the head that `parts` has."""
    rows = parts.word_embeddings.size(0)
    graph = PackedBert(parts, torch.float32)
    return torch.jit.script(TextClassifier(graph, vocab_size=rows, max_length=max_length, multi_label=False).eval())


def medians(runs: dict[str, Callable[[], object]], title: str) -> dict[str, float]:
    """Milliseconds of each, measured in turns."""
    return {name: 1e3 * statistics.median(times) for name, times in interleaved(runs, SECONDS, title).items()}


def joined(points: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """One list a name, instead of one dict a point."""
    return {name: [point[name] for point in points] for name in points[0]}


def section(found: Sequence[Curve], chart: Path) -> list[str]:
    """Markdown, to be joined by empty lines; draws the chart beside the report."""
    report.curve_chart(chart, found)
    parts = [
        "## How cost grows",
        f"![Milliseconds over tokens, texts and labels]({chart.name}.svg)",
        "Milliseconds, medians; in parentheses the share of the peak. The head is in fp32 in every precision. fp16 "
        "means fp16 weights and fp32 activations, so its peak is that of fp32.",
    ]
    for curve in found:
        header = [curve.unit, *(f"{name} ms" for name in curve.ms)]
        rows = [
            [str(value), *(point(ms[index], curve.roofline[name][index]) for name, ms in curve.ms.items())]
            for index, value in enumerate(curve.values)
        ]
        parts += [f"{curve.title.capitalize()}:", report.table(header, rows)]
    return parts


def point(ms: float, roofline: float) -> str:
    return f"{report.number(ms)} ({roofline / ms:.0%})"
