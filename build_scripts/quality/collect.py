"""Put a classifier's answers beside the labels of a file. Asks and counts; `metrics` judges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import BadRow, Columns, Row, class_ids_of, read_labelled
from build_scripts.quality.answers import Batch, Source

# Probabilities kept at once (4 bytes each); split a larger file.
MAX_PROBABILITIES = 500_000_000


@dataclass
class Collected:
    """Answers beside labels, in the order of the file.

    lines: (texts,) of the file. truth: (texts,) int64, or (texts, labels) bool for multi-label. predicted: (texts,)
    int64 class ids. probabilities: (texts, labels) float32. cut: texts longer than max_length. seconds: per request.
    """

    lines: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    cut: int
    bad: list[BadRow] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def right(self) -> np.ndarray:
        """(texts,) bool; for multi-label every label must be right."""
        if self.truth.ndim == 2:
            return ((self.probabilities >= 0.5) == self.truth).all(1)
        return self.predicted == self.truth


def collect(source: Source, file: Path, columns: Columns) -> Collected:
    """Ask for every labelled text of the file. Raises ServingError if the file holds none, or an unknown label."""
    bad: list[BadRow] = []
    lines: list[int] = []
    truth: list[list[int]] = []

    def texts() -> Iterator:
        for row in read_labelled(file, columns):
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            truth.append(class_ids_of(row, source.labels, multi_label=source.multi_label))
            lines.append(row.line)
            if len(lines) * len(source.labels) > MAX_PROBABILITIES:
                raise ServingError(
                    f"{file} has more than {len(lines) - 1} texts; {MAX_PROBABILITIES} probabilities are kept at most, "
                    f"and this model has {len(source.labels)} labels: split the file"
                )
            yield row.text

    found: list[Batch] = []
    with tqdm(desc=f"asking {source.described}", unit="text", disable=None, leave=False) as progress:
        for batch in source.answers(texts()):
            found.append(batch)
            progress.update(len(batch.class_ids))
    if not found:
        raise ServingError(f"{file} holds no labelled text ({len(bad)} bad rows); expected text and label in each")
    ids = truth_matrix(truth, len(source.labels)) if source.multi_label else np.array([one[0] for one in truth])
    return Collected(
        lines=np.array(lines),
        truth=ids,
        predicted=np.concatenate([batch.class_ids for batch in found]),
        probabilities=np.concatenate([batch.probabilities for batch in found]),
        cut=int(sum(batch.truncated.sum() for batch in found)),
        bad=bad,
        seconds=[batch.seconds for batch in found],
    )


def truth_matrix(truth: list[list[int]], labels: int) -> np.ndarray:
    matrix = np.zeros((len(truth), labels), dtype=bool)
    for row, ids in zip(matrix, truth):
        row[ids] = True
    return matrix


def texts_at(file: Path, columns: Columns, lines: set[int]) -> dict[int, Row]:
    """The rows at these lines, read again: no run keeps all texts in memory."""
    rows = (row for row in read_labelled(file, columns) if isinstance(row, Row))
    return {row.line: row for row in rows if row.line in lines}
