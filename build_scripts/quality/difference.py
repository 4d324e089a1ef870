"""Compare two classifiers text by text: what changes if the second one goes live. Labels are optional."""

from __future__ import annotations

import csv
import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import BadRow, Columns, class_ids_of, read_labelled
from build_scripts.core.markdown import table
from build_scripts.core.text_files import read_lines
from build_scripts.quality.answers import Source, rows_of
from build_scripts.quality.metrics import Figure, difference, mcnemar, wilson
from build_scripts.quality.report import shown

MOVED_SHOWN, PAIRS_SHOWN = 100, 20


@dataclass
class Difference:
    """pairs: (live label, candidate label) -> texts. moved: (distance, line, text, live label, candidate label).

    right: per labelled text, whether live and candidate are right.
    """

    texts: int = 0
    changed: int = 0
    pairs: Counter = field(default_factory=Counter)
    moved: list[tuple] = field(default_factory=list)
    right: list[tuple[bool, bool]] = field(default_factory=list)


def compare(live: Source, candidate: Source, file: Path, columns: Columns) -> Difference:
    """Ask both for every text. The distance of two answers is half the sum of |probability changes| over shared labels.

    Raises ServingError if the file holds no text.
    """
    ours, theirs = itertools.tee(labelled_or_plain(file, columns, live))
    rows, kept = itertools.tee(ours)
    answers = zip(
        kept,
        rows_of(live.answers(row[1] for row in rows)),
        rows_of(candidate.answers(row[1] for row in theirs)),
    )
    place = {label: index for index, label in enumerate(candidate.labels)}
    first = np.array([index for index, label in enumerate(live.labels) if label in place], dtype=int)
    second = np.array([place[live.labels[index]] for index in first], dtype=int)
    found, serial = Difference(), itertools.count()
    for (line, text, labels), (live_id, live_row, _), (new_id, new_row, _) in tqdm(answers, unit="text", disable=None):
        names = live.labels[live_id], candidate.labels[new_id]
        found.texts += 1
        found.changed += names[0] != names[1]
        if names[0] != names[1]:
            found.pairs[names] += 1
        distance = float(np.abs(live_row[first] - new_row[second]).sum()) / (1 if live.multi_label else 2)
        entry = (distance, -next(serial), line, text, *names)
        (heapq.heappush if len(found.moved) < MOVED_SHOWN else heapq.heappushpop)(found.moved, entry)
        if labels is not None:
            found.right.append((_right(live, live_id, live_row, labels), _right(candidate, new_id, new_row, labels)))
    if not found.texts:
        raise ServingError(f"FILE={file} holds no text; expected one a line, or labelled texts")
    found.moved.sort(reverse=True)
    return found


def labelled_or_plain(file: Path, columns: Columns, source: Source) -> Iterator[tuple]:
    """(line, text, label names or None). A .txt file, or one without tabs, holds plain texts, one a line."""
    if file.suffix.lower() in (".csv", ".json", ".jsonl", ".ndjson") or _has_tabs(file):
        for row in read_labelled(file, columns):
            if not isinstance(row, BadRow):
                ids = class_ids_of(row, source.labels, multi_label=source.multi_label)
                yield row.line, row.text, {source.labels[class_id] for class_id in ids}
    else:
        for number, line in enumerate(read_lines("FILE", file), 1):
            if line.strip():
                yield number, line, None


def _has_tabs(file: Path) -> bool:
    return any("\t" in line for line in itertools.islice(read_lines("FILE", file), 20))


def _right(source: Source, class_id: int, row: np.ndarray, labels: set[str]) -> bool:
    said = np.flatnonzero(row >= 0.5) if source.multi_label else [class_id]
    return {source.labels[index] for index in said} == labels


def accuracies(found: Difference) -> dict[str, Figure | float]:
    """Accuracy of both, its paired difference, and McNemar's p; empty without labels."""
    if not found.right:
        return {}
    live, candidate = np.array(found.right).T
    return {
        "live": wilson(int(live.sum()), len(live)),
        "candidate": wilson(int(candidate.sum()), len(candidate)),
        "candidate minus live": difference(live, candidate),
        "McNemar's p": mcnemar(int((live & ~candidate).sum()), int((candidate & ~live).sum())),
    }


def write_difference(directory: Path, found: Difference, live: str, candidate: str) -> Path:
    """Write report.md and moved.tsv; returns report.md."""
    directory.mkdir(parents=True, exist_ok=True)
    changed = wilson(found.changed, found.texts)
    parts = [
        f"# {live} against {candidate}",
        f"{found.changed} of {found.texts} class ids differ: {100 * changed.value:.2f} % (95 % interval "
        f"{100 * changed.low:.2f} to {100 * changed.high:.2f} %).",
    ]
    if figures := accuracies(found):
        rows = [[name, *_cells(figure)] for name, figure in figures.items()]
        parts.append("## Accuracy\n\n" + table(["", "value", "95 % interval"], rows))
    if found.pairs:
        rows = [[was, now, str(count)] for (was, now), count in found.pairs.most_common(PAIRS_SHOWN)]
        parts.append("## Which classes change\n\n" + table(["live", "candidate", "texts"], rows))
    parts.append(f"The {len(found.moved)} texts whose probabilities move furthest are in [moved.tsv](moved.tsv).")
    with (directory / "moved.tsv").open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t")
        writer.writerow(["line", "distance", "live", "candidate", "text"])
        writer.writerows(
            [line, f"{far:.4f}", was, now, shown(text, 2000)] for far, _, line, text, was, now in found.moved
        )
    report = directory / "report.md"
    report.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return report


def _cells(figure: Figure | float) -> list[str]:
    if isinstance(figure, Figure):
        return [f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}"]
    return [f"{figure:.3g}", ""]
