"""Refuse a release that is worse than the live one on a labelled file. Switches nothing; the caller does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import DEFAULT_COLUMNS, Columns
from build_scripts.core.paths import BUILD
from build_scripts.quality.answers import InProcess, Served, Source
from build_scripts.quality.evaluate import Evaluated, evaluate
from build_scripts.quality.metrics import Figure, difference
from build_scripts.releases.files import digest
from build_scripts.releases.store import record

EVALUATION = BUILD / "evaluate"


@dataclass(frozen=True)
class Verdict:
    """change: accuracy of the candidate minus the live one's, paired, with its 95 % interval."""

    live: Evaluated
    candidate: Evaluated
    change: Figure

    def __str__(self) -> str:
        was, now = (one.quality.headline["accuracy"] for one in (self.live, self.candidate))
        texts = len(self.live.collected.lines)
        return f"accuracy {was.value:.4f} -> {now.value:.4f}, change {self.change} on {texts} texts"


def release_check(
    file: Path, worse_by: float, name: str, columns: Columns = DEFAULT_COLUMNS
) -> Callable[[Path, str], None]:
    """A check for `release`: refuses a release that is less accurate on `file` than the running server.

    Records the figures of a release that it lets through, for `make status`.
    """

    def check(release: Path, grpc_url: str) -> None:
        verdict = judge(Served(grpc_url, name), InProcess(release), file, EVALUATION, worse_by, columns)
        record(release, evaluation=figures_of(verdict.candidate, file))
        print(f"not worse than the live release: {verdict}", flush=True)

    return check


def figures_of(evaluated: Evaluated, file: Path) -> dict:
    """What a release remembers of its evaluation."""
    figures = {name: asdict(figure) for name, figure in evaluated.quality.headline.items()}
    return {"file": file.name, "file_sha256": digest(file), "texts": evaluated.quality.texts, "figures": figures}


def judge(
    live: Source,
    candidate: Source,
    file: Path,
    directory: Path,
    worse_by: float,
    columns: Columns = DEFAULT_COLUMNS,
) -> Verdict:
    """Evaluate both. Raises ServingError if the candidate's accuracy is lower by more than `worse_by`."""
    if live.labels != candidate.labels:
        missing = sorted({*live.labels} - {*candidate.labels})
        if missing:
            raise ServingError(
                f"the candidate lacks the live model's label {missing[0]!r} ({len(missing)} in all): no file can be "
                "labelled for both; release without EVALUATE if that is meant"
            )
    before = evaluate(live, file, directory / "live", columns)
    after = evaluate(candidate, file, directory / "candidate", columns)
    if not np.array_equal(before.collected.lines, after.collected.lines):
        raise ServingError(f"{file} changed while it was read; run the release again")
    verdict = Verdict(before, after, difference(before.collected.right, after.collected.right))
    if verdict.change.value < -worse_by:
        raise ServingError(
            f"the candidate is worse: {verdict}; at most {worse_by:g} may be lost (WORSE_BY). Nothing was switched; "
            f"see {after.report}"
        )
    return verdict
