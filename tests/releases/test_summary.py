"""What a build prints of the precisions that it tried."""

from __future__ import annotations

import pytest

from build_scripts.releases.pipeline import Built
from build_scripts.releases.summary import print_build, verdict


def attempt(precision: str, passed: bool = True, within_promise: bool | None = True) -> dict:
    unseen = {
        "texts": 650, "changed": 3, "changed_at_most": 0.0118, "broken": 8, "broken_at_most": 0.022,
        "shift_at_most": 0.024, "within_promise": within_promise,
    }  # fmt: skip
    return {"precision": precision, "passed": passed, "unseen": None if within_promise is None else unseen}


@pytest.mark.parametrize(
    ("tried", "chosen", "said"),
    [
        (attempt("bf16"), "bf16", "chosen"),
        (attempt("fp32"), "bf16", "passed"),
        (attempt("fp32", within_promise=None), "bf16", "passed"),
        (attempt("bf16", passed=False), "fp32", "rejected"),
        (attempt("bf16", within_promise=False), "fp32", "passed, but not safe enough for auto"),
    ],
)
def test_says_the_outcome_of_each_precision(tried, chosen, said):
    assert verdict(tried, chosen) == said


def test_prints_a_row_for_each_precision(tmp_path, monkeypatch, capsys):
    release = tmp_path / "repository" / "topic" / "releases" / "0123"
    release.mkdir(parents=True)
    for name in ("model.pt", "tokenizer.json"):
        (release / name).touch()
    parity = {"wrong": 7, "texts": 500, "near_ties": 1, "max_probability_error": 0.3}
    manifest = {
        "release": "0123", "checkpoint": "a", "architecture": "bert", "graph": "packed",
        "multi_label": False, "score": None,
        "labels": ["no", "yes"], "max_length": 128, "longest": 512, "temperature": None, "documents": None,
        "precision": "fp32",
        "attempts": [
            {**attempt("fp32", within_promise=None), "milliseconds": 2.0, "parity": {**parity, "wrong": 0}},
            {**attempt("bf16", passed=False, within_promise=False), "milliseconds": 1.0, "parity": parity},
        ],
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    print_build(Built(release, manifest, changed=True))
    lines = capsys.readouterr().out.splitlines()
    said = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if "│" in line}
    assert said["precision fp32"].startswith("chosen: 0 of 500 class ids differ")
    assert said["precision bf16"].startswith("rejected: 7 of 500 class ids")
    assert (
        "of 650 unseen texts 3 change class id, 8 break a limit (95 % bounds: 1.2% and 2.2%" in said["precision bf16"]
    )
    assert "unseen" not in said["precision fp32"]
    assert said["max_length"] == "128, at most 512"
    assert said["release"] == f"0123 of topic in {tmp_path / 'repository'}"


def test_prints_ten_of_20000_labels(tmp_path, monkeypatch, capsys):
    release = tmp_path / "repository" / "topic" / "releases" / "0123"
    release.mkdir(parents=True)
    for name in ("model.pt", "tokenizer.json"):
        (release / name).touch()
    manifest = {
        "release": "0123", "checkpoint": "a", "architecture": "bert", "graph": "packed",
        "multi_label": False, "score": None,
        "labels": [f"label {index}" for index in range(20_000)], "max_length": 128, "longest": 512,
        "temperature": None, "documents": None,
        "precision": "fp32", "attempts": [],
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    print_build(Built(release, manifest, changed=True))
    output = capsys.readouterr().out
    assert "20000, single-label: label 0, label 1," in output
    assert "label 9 and 19990 more" in output
    assert len(output) < 10_000
