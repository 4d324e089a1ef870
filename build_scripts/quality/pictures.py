"""Draw the pictures of a report: confusion matrix, reliability diagram, accuracy over coverage. Measures nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from build_scripts.quality.metrics import Quality

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
# Numbers in the cells, and names at the axes, up to these many labels; beyond, class ids at every tenth.
NUMBERED_CELLS, NAMED_AXES = 15, 40
# Fonts with Chinese, Japanese and Korean characters, as distributions and systems name them.
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
             "Droid Sans Fallback", "SimHei", "Microsoft YaHei", "PingFang SC")  # fmt: skip


def draw(quality: Quality, labels: list[str], directory: Path) -> list[Path]:
    """Write the pictures as PNG; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    if quality.confusion is not None:
        files.append(confusion_picture(quality.confusion, labels, directory / "confusion.png"))
    return [
        *files,
        reliability_picture(quality, directory / "reliability.png"),
        coverage_picture(quality, directory / "coverage.png"),
    ]


def axis_names(labels: list[str]) -> tuple[list[str], str | None]:
    """What the axes say for each label, and the font family. Class ids where no installed font has the characters."""
    from matplotlib import font_manager

    shortened = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels]
    characters = {character for label in shortened for character in label}
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    for family in ("DejaVu Sans", *CJK_FONTS):
        if family in installed:
            font = font_manager.get_font(installed[family])
            if all(font.get_char_index(ord(character)) for character in characters):
                return shortened, family
    return [str(class_id) for class_id in range(len(labels))], None


def confusion_picture(confusion: np.ndarray, labels: list[str], file: Path) -> Path:
    """confusion: (labels, labels) texts. Colours show shares of the true class, numbers show texts."""
    import matplotlib
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(labels)
    names, family = axis_names(labels)
    if count > NAMED_AXES:
        names = [str(class_id) for class_id in range(count)]
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    size = min(2.8 + 0.38 * count, 9.0)
    # Many classes: a rare confusion is a small share, and must still be seen.
    norm = PowerNorm(1.0 if count <= NUMBERED_CELLS else 0.4, vmin=0, vmax=1)
    with matplotlib.rc_context({"font.family": [family or "DejaVu Sans"]}):
        figure = Figure((size + 1.0, size), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="Blues", norm=norm, aspect="equal")
        step = 1 if count <= NAMED_AXES else 10
        ticks = list(range(0, count, step))
        axis.set_xticks(ticks, [names[tick] for tick in ticks], rotation=90 if count > 2 else 0, fontsize=9)
        axis.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=9)
        what = "class id" if count > NAMED_AXES or family is None else "class"
        axis.set(xlabel=f"predicted {what}", ylabel=f"true {what}")
        if count <= NUMBERED_CELLS:
            for (row, column), texts in np.ndenumerate(confusion):
                if texts:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axis.text(column, row, str(texts), ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
        figure.savefig(file, dpi=150, facecolor="white")
    return file


def reliability_picture(quality: Quality, file: Path) -> Path:
    """Accuracy over confidence, beside the diagonal of a calibrated model; below, the answers at each confidence."""
    from matplotlib.figure import Figure

    filled = quality.bins[quality.bins[:, 2] > 0]
    figure = Figure((4.6, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="calibrated")
    upper.plot(filled[:, 0], filled[:, 1], "o-", color=BLUE, markersize=5, label="this model")
    upper.set(ylabel="share that is right", ylim=(-0.02, 1.02))
    upper.legend(frameon=False)
    upper.grid(alpha=0.25)
    lower.bar(filled[:, 0], filled[:, 2], width=0.04, color=ORANGE)
    lower.set(xlabel="confidence", ylabel="answers", xlim=(0, 1.02))
    figure.savefig(file, dpi=150, facecolor="white")
    return file


def coverage_picture(quality: Quality, file: Path) -> Path:
    """Accuracy of the most confident answers over their share."""
    from matplotlib.figure import Figure

    figure = Figure((4.6, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(100 * quality.coverage[:, 1], 100 * quality.coverage[:, 2], color=BLUE)
    for found in quality.thresholds:
        axis.plot(100 * found.coverage, 100 * found.accuracy, "o", color=ORANGE)
        axis.annotate(f"≥ {found.threshold:.2f}", (100 * found.coverage, 100 * found.accuracy), (4, 6),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    axis.set(xlabel="coverage: answers kept (%)", ylabel="accuracy of these (%)", xlim=(0, 104))
    axis.grid(alpha=0.25)
    figure.savefig(file, dpi=150, facecolor="white")
    return file
