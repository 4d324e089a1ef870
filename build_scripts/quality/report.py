"""Write the report of an evaluation: Markdown for people, worst errors as TSV, figures as JSON. Measures nothing."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from build_scripts.core.labelled_file import Columns, Row
from build_scripts.core.markdown import table
from build_scripts.quality.collect import Collected, texts_at
from build_scripts.quality.metrics import Quality
from build_scripts.quality.pictures import draw

CONFUSIONS, WORST, BAD_ROWS_SHOWN = 10, 50, 20
# A label's sign in a table of many: names longer than this are cut.
NAME_LIMIT = 40


def write_report(
    directory: Path,
    collected: Collected,
    quality: Quality,
    labels: list[str],
    described: str,
    file: Path,
    columns: Columns,
) -> Path:
    """Write report.md, pictures, worst.tsv and figures.json into the directory; returns report.md."""
    pictures = draw(quality, labels, directory)
    worst = worst_errors(collected)
    pairs = largest_confusions(quality)
    examples = {pair: example_line(collected, *pair) for pair in pairs}
    rows = texts_at(file, columns, {int(collected.lines[place]) for place in worst} | set(examples.values()))
    write_worst(directory / "worst.tsv", collected, worst, rows, labels)
    write_figures(directory / "figures.json", quality, described, file)
    parts = [
        f"# Evaluation of {described}",
        _summary(collected, quality, file),
        "## Figures\n\nEach with its 95 % interval.\n\n" + headline_table(quality),
        "## Classes\n\n" + class_table(quality, labels),
    ]
    if pairs:
        parts.append("## Largest confusions\n\n" + confusion_table(pairs, quality, labels, examples, rows))
    parts.append("## Coverage and accuracy\n\n" + coverage_text(quality))
    if quality.best_thresholds is not None:
        parts.append("## Best threshold of each label\n\n" + threshold_table(quality, labels))
    parts.append("## Pictures\n\n" + "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures))
    parts.append(f"## Errors\n\nThe {len(worst)} worst errors are in [worst.tsv](worst.tsv).{_bad_rows(collected)}")
    report = directory / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report


def _summary(collected: Collected, quality: Quality, file: Path) -> str:
    milliseconds = 1e3 * np.array(collected.seconds)
    return "\n".join(
        [
            f"- file: {file.name}, {quality.texts} texts, {len(collected.bad)} bad rows",
            f"- accuracy: {quality.headline['accuracy']}",
            f"- texts cut at max_length: {collected.cut} ({100 * collected.cut / quality.texts:.1f} %)",
            f"- latency of a request of up to 64 texts: p50 {np.quantile(milliseconds, 0.5):.1f} ms, "
            f"p95 {np.quantile(milliseconds, 0.95):.1f} ms",
        ]
    )


def headline_table(quality: Quality) -> str:
    rows = [[name, f"{f.value:.4f}", f"{f.low:.4f}", f"{f.high:.4f}"] for name, f in quality.headline.items()]
    return table(["figure", "value", "low", "high"], rows)


def class_table(quality: Quality, labels: list[str]) -> str:
    rows = [
        [name_of(class_id, labels), *(f"{value:.3f}" for value in values[:3]), f"{values[3]:.0f}"]
        for class_id, values in enumerate(quality.per_class)
    ]
    return table(["class", "precision", "recall", "F1", "support"], rows)


def name_of(class_id: int, labels: list[str]) -> str:
    label = labels[class_id]
    return f"{class_id} {label if len(label) <= NAME_LIMIT else label[: NAME_LIMIT - 1] + '…'}"


def largest_confusions(quality: Quality) -> list[tuple[int, int]]:
    """(true, predicted) class ids, the most texts first; none for multi-label."""
    if quality.confusion is None:
        return []
    errors = quality.confusion.copy()
    np.fill_diagonal(errors, 0)
    flat = np.argsort(-errors, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(int(place // errors.shape[1]), int(place % errors.shape[1])) for place in flat]
    return [pair for pair in pairs if errors[pair]]


def example_line(collected: Collected, true: int, predicted: int) -> int:
    """The line of the text with this confusion of which the model was most sure."""
    places = np.flatnonzero((collected.truth == true) & (collected.predicted == predicted))
    return int(collected.lines[places[collected.probabilities[places, predicted].argmax()]])


def confusion_table(
    pairs: list[tuple[int, int]], quality: Quality, labels: list[str], examples: dict, rows: dict[int, Row]
) -> str:
    assert quality.confusion is not None
    cells = []
    for pair in pairs:
        line = examples[pair]
        text = shown(rows[line].text)
        cells.append(
            [name_of(pair[0], labels), name_of(pair[1], labels), str(quality.confusion[pair]), f"{line}: {text}"]
        )
    return table(["true", "predicted", "texts", "example (line: text)"], cells)


def shown(text: str | tuple[str, str], limit: int = 100) -> str:
    """A text in one line, cut."""
    joined = " ".join((text if isinstance(text, str) else " ⏐ ".join(text)).split())
    return joined if len(joined) <= limit else joined[: limit - 1] + "…"


def coverage_text(quality: Quality) -> str:
    if not quality.thresholds:
        return "No threshold reaches 90 % accuracy."
    rows = [
        [
            f"{100 * one.target:.0f} %",
            f"{one.threshold:.4f}",
            f"{100 * one.coverage:.1f} %",
            f"{100 * one.accuracy:.2f} %",
        ]
        for one in quality.thresholds
    ]
    return "Keep answers whose confidence is at least the threshold.\n\n" + table(
        ["accuracy wanted", "threshold", "coverage", "accuracy"], rows
    )


def threshold_table(quality: Quality, labels: list[str]) -> str:
    assert quality.best_thresholds is not None
    rows = [
        [name_of(class_id, labels), f"{threshold:.4f}", f"{f1:.3f}"]
        for class_id, (threshold, f1) in enumerate(quality.best_thresholds)
        if not np.isnan(threshold)
    ]
    return table(["label", "threshold", "F1 there"], rows)


def worst_errors(collected: Collected) -> np.ndarray:
    """Places of the errors of which the model was most sure, the surest first."""
    wrong = np.flatnonzero(~collected.right)
    if collected.truth.ndim == 2:
        distance = np.abs(collected.probabilities[wrong] - collected.truth[wrong]).max(1)
    else:
        distance = collected.probabilities[wrong, collected.predicted[wrong]]
    return wrong[np.argsort(-distance, kind="stable")[:WORST]]


def write_worst(file: Path, collected: Collected, worst: np.ndarray, rows: dict[int, Row], labels: list[str]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t")
        writer.writerow(["line", "true", "predicted", "probability", "text"])
        for place in worst:
            line = int(collected.lines[place])
            if collected.truth.ndim == 2:
                true, said = collected.truth[place], collected.probabilities[place] >= 0.5
                names = ["|".join(labels[i] for i in np.flatnonzero(row)) or "-" for row in (true, said)]
                sure = float(np.abs(collected.probabilities[place] - true).max())
            else:
                names = [labels[collected.truth[place]], labels[collected.predicted[place]]]
                sure = float(collected.probabilities[place, collected.predicted[place]])
            writer.writerow([line, *names, f"{sure:.4f}", shown(rows[line].text, 2000)])


def write_figures(file: Path, quality: Quality, described: str, data: Path) -> None:
    """The headline figures, the share of each class among the answers, and the thresholds, for machines."""
    content = {
        "model": described,
        "file": data.name,
        "texts": quality.texts,
        "figures": {name: asdict(figure) for name, figure in quality.headline.items()},
        "thresholds": [asdict(one) for one in quality.thresholds],
    }
    if quality.confusion is not None:
        content["predicted_share"] = (quality.confusion.sum(0) / quality.texts).round(6).tolist()
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _bad_rows(collected: Collected) -> str:
    if not collected.bad:
        return ""
    reasons = Counter(row.reason for row in collected.bad).most_common(BAD_ROWS_SHOWN)
    lines = [f"- line {next(r.line for r in collected.bad if r.reason == reason)}"
             f"{f' and {count - 1} more' if count > 1 else ''}: {reason}" for reason, count in reasons]  # fmt: skip
    return f"\n\n{len(collected.bad)} rows were left out:\n\n" + "\n".join(lines)
