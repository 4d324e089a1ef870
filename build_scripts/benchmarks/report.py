"""Markdown tables, the facts about machine and versions, and charts. Measures nothing.

Only the charts import matplotlib, so that tables need the serving environment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_scripts.core.machine import describe

# Okabe and Ito's palette for colour-blind readers; ours first, the baseline in grey.
BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#8C8C8C"
PANEL_WIDTH, PANEL_HEIGHT = 4.2, 3.4
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "svg.fonttype": "none",
    # Fixed names of an SVG's parts, so that equal charts are equal files.
    "svg.hashsalt": "report",
}


@dataclass(frozen=True)
class Sweep:
    """One panel: latencies (ms) over throughput (texts/s), one point a concurrency level."""

    title: str
    concurrency: Sequence[int]
    throughput: Sequence[float]
    p50: Sequence[float]
    p99: Sequence[float]


@dataclass(frozen=True)
class Bars:
    """One panel of horizontal bars: a value and its label for each service."""

    title: str
    unit: str
    values: Sequence[float]
    notes: Sequence[str]


def number(value: float) -> str:
    """Three significant digits, without an exponent: 0.0123, 4.57, 81.3, 1240."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    digits = next(places for places in range(9) if abs(value) * 10**places >= 99.95 or places == 8)
    return f"{value:.{digits}f}"


def ratio(value: float, baseline: float) -> str:
    """Multiple of the baseline: 1.0×, 12.3×, 140×."""
    times = value / baseline
    return f"{times:.0f}×" if times >= 100 else f"{times:.1f}×"


def facts(**others: str) -> str:
    """A Markdown list: the machine, the versions, and further facts."""
    lines = {"machine": describe(), "versions": ", ".join(versions()), **others}
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in lines.items())


def versions() -> list[str]:
    """Name and version of the packages that decide speed, as installed here."""
    found = []
    runtimes = ("torch", "transformers", "tokenizers", "tritonclient", "onnxruntime", "openvino")
    for name in (*runtimes, "flask", "waitress", "uvloop"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def write(directory: Path, text: str) -> Path:
    """Write report.md; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "report.md"
    file.write_text(text.rstrip() + "\n", encoding="utf-8")
    return file


def latency_chart(file: Path, sweeps: Sequence[Sweep]) -> None:
    """Latency over throughput, one panel a workload; writes file.png and file.svg."""
    figure, panels = _figure(1, len(sweeps))
    for panel, sweep in zip(panels, sweeps):
        panel.plot(sweep.throughput, sweep.p99, "s--", color=ORANGE, markersize=4, linewidth=1.2, label="p99")
        panel.plot(sweep.throughput, sweep.p50, "o-", color=BLUE, markersize=5, label="p50")
        for level, x, y in zip(sweep.concurrency, sweep.throughput, sweep.p50):
            panel.annotate(str(level), (x, y), (0, -13), textcoords="offset points", ha="center", fontsize=8)
        panel.set(title=sweep.title, xlabel="throughput (texts/s)", ylabel="latency (ms)")
        panel.set_xlim(0, 1.12 * max(sweep.throughput))
        # Room below the lowest point for the labels of its level.
        panel.set_ylim(-0.08 * max(sweep.p99), 1.08 * max(sweep.p99))
        panel.grid(alpha=0.25)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    figure.supxlabel("Numbers at the points: requests in flight (concurrency)", fontsize=9, color="#444444")
    _save(figure, file)


def bar_chart(file: Path, services: Sequence[str], colors: Sequence[str], panels: Sequence[Bars]) -> None:
    """Horizontal bars, two panels a row, the services in the same order in each; writes file.png and file.svg."""
    figure, axes = _figure(-(-len(panels) // 2), 2)
    places = range(len(services))
    for index, (axis, bars) in enumerate(zip(axes, panels)):
        axis.barh(places, bars.values, color=colors, height=0.7)
        for place, value, note in zip(places, bars.values, bars.notes):
            axis.annotate(note, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axis.set(title=bars.title, xlabel=bars.unit)
        axis.set_yticks(list(places), services if index % 2 == 0 else [""] * len(services))
        axis.tick_params(axis="y", length=0)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.35 * max(bars.values))  # room for the notes
    for unused in axes[len(panels) :]:
        unused.remove()
    _save(figure, file)


def _figure(rows: int, columns: int):
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((PANEL_WIDTH * columns, PANEL_HEIGHT * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
    return figure, panels


def _save(figure, file: Path) -> None:
    import matplotlib

    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(file.with_suffix(".png"), dpi=150, facecolor="white")
        figure.savefig(file.with_suffix(".svg"), facecolor="white", metadata={"Date": None})
