"""What `bench` measured, as tables: time, share of the machine's peak, and whether cost follows tokens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from build_scripts.benchmarks import report

PRECISIONS = ("fp32", "bf16")
# Hugging Face's variants, and the precision of the file that each is compared with.
HUGGING_FACE = {"HF fp32 padded": "fp32", "HF fp32 trimmed": "fp32", "HF bf16 trimmed": "bf16"}
# Rows, columns and reduction of the product that stands for the peak: large enough to reach it, small enough to repeat.
PEAK_SHAPE = (2048, 1024, 1024)


@dataclass(frozen=True)
class Measured:
    """One workload: a batch of texts of `lengths` tokens.

    seconds: every timed call of each variant. flops, equal_flops: operations of the packed graph, for the batch and for
    as many tokens in equal lengths; None for any other graph.
    """

    name: str
    lengths: list[int]
    seconds: dict[str, list[float]]
    flops: int | None
    equal_flops: int | None

    def ms(self, variant: str) -> float:
        """Median."""
        return 1e3 * statistics.median(self.seconds[variant])


def peak(measured: Sequence[Measured], precision: str) -> float:
    """FLOP/s of the fastest large product of the whole run: a ceiling, so not a median."""
    return 2 * math.prod(PEAK_SHAPE) / min(min(one.seconds[f"peak {precision}"]) for one in measured)


def sections(measured: Sequence[Measured], max_length: int) -> list[str]:
    """Markdown, to be joined by empty lines."""
    peaks = {precision: peak(measured, precision) for precision in PRECISIONS}
    return [
        "## Time",
        "Milliseconds a batch, medians. “HF” is Hugging Face's eager model, padded to "
        f"{max_length} or trimmed to the longest text of the batch; in parentheses how many times the file of the same "
        "precision it takes.",
        report.table(
            ["batch", "tokens", *(f"{precision} ms" for precision in PRECISIONS), *(f"{n} ms" for n in HUGGING_FACE)],
            [times(one) for one in measured],
        ),
        "## Share of the machine's peak",
        f"The peak, {' and '.join(f'{report.number(peaks[p] / 1e9)} GFLOP/s in {p}' for p in PRECISIONS)}, is the "
        f"fastest {' × '.join(map(str, PEAK_SHAPE))} product of the oneDNN kernel that the file uses, measured in turn "
        "with the batches. Counted are the linear layers for real tokens and attention within each "
        "text, in the last layer only what the first token needs; not padding, embeddings, LayerNorm, GELU, softmax.",
        report.table(
            [
                "batch",
                "GFLOP",
                *(f"{p} {what}" for p in PRECISIONS for what in ("tokens/s", "GFLOP/s", "share")),
            ],
            [shares(one, peaks) for one in measured],
        ),
        "## Cost follows tokens",
        "Each mixed batch against as many texts and tokens in equal lengths: 1.00× means that unequal lengths cost "
        "nothing. Attention is quadratic, so a few long texts need more operations than many equal ones.",
        report.table(
            ["batch", *(f"{precision} time" for precision in PRECISIONS), "operations"],
            [evenness(one) for one in measured if f"{PRECISIONS[0]} equal" in one.seconds],
        ),
    ]


def times(one: Measured) -> list[str]:
    cells = [one.name, str(sum(one.lengths)), *(report.number(one.ms(precision)) for precision in PRECISIONS)]
    for name, precision in HUGGING_FACE.items():
        cells.append(f"{report.number(one.ms(name))} ({report.ratio(one.ms(name), one.ms(precision))})")
    return cells


def shares(one: Measured, peaks: dict[str, float]) -> list[str]:
    cells = [one.name, "–" if one.flops is None else report.number(one.flops / 1e9)]
    for precision in PRECISIONS:
        seconds = one.ms(precision) / 1e3
        speed, share = "–", "–"
        if one.flops is not None:
            speed, share = report.number(one.flops / seconds / 1e9), f"{one.flops / seconds / peaks[precision]:.0%}"
        cells += [report.number(sum(one.lengths) / seconds), speed, share]
    return cells


def evenness(one: Measured) -> list[str]:
    ratios = [f"{one.ms(precision) / one.ms(f'{precision} equal'):.2f}×" for precision in PRECISIONS]
    operations = "–" if one.flops is None or one.equal_flops is None else f"{one.flops / one.equal_flops:.2f}×"
    return [one.name, *ratios, operations]
