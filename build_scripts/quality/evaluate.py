"""Evaluate a classifier on a labelled file: ask, measure, report. The steps lie in the files beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.labelled_file import DEFAULT_COLUMNS, Columns
from build_scripts.quality.answers import Source
from build_scripts.quality.collect import Collected, collect
from build_scripts.quality.metrics import Quality, measure
from build_scripts.quality.report import write_report


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation. report: its report.md."""

    collected: Collected
    quality: Quality
    report: Path


def evaluate(source: Source, file: Path, directory: Path, columns: Columns = DEFAULT_COLUMNS) -> Evaluated:
    """Ask `source` for every text of `file` and write the report into `directory`. Raises ServingError."""
    collected = collect(source, file, columns)
    quality = measure(collected.truth, collected.probabilities, collected.predicted)
    report = write_report(directory, collected, quality, source.labels, source.described, file, columns)
    return Evaluated(collected, quality, report)
