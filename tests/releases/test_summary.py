"""What a build prints of the precisions that it tried."""

from __future__ import annotations

import pytest

from build_scripts.releases.pipeline import Built
from build_scripts.releases.summary import print_build, verdict


@pytest.mark.parametrize(
    ("precision", "passed", "chosen", "said"),
    [
        ("bf16", True, "bf16", "chosen"),
        ("fp32", True, "bf16", "passed"),
        ("bf16", False, "fp32", "rejected"),
    ],
)
def test_says_the_outcome_of_each_precision(precision, passed, chosen, said):
    assert verdict({"precision": precision, "passed": passed}, chosen) == said


def test_prints_a_row_for_each_precision(tmp_path, monkeypatch, capsys):
    release = tmp_path / "repository" / "topic" / "releases" / "0123"
    release.mkdir(parents=True)
    for name in ("model.pt", "tokenizer.json"):
        (release / name).touch()
    parity = {"wrong": 7, "texts": 500, "near_ties": 1, "max_probability_error": 0.3}
    manifest = {
        "release": "0123", "checkpoint": "a", "architecture": "bert", "graph": "packed", "multi_label": False,
        "labels": ["no", "yes"], "max_length": 128, "precision": "fp32",
        "attempts": [
            {"precision": "fp32", "passed": True, "milliseconds": 2.0, "parity": {**parity, "wrong": 0}},
            {"precision": "bf16", "passed": False, "milliseconds": 1.0, "parity": parity},
        ],
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    print_build(Built(release, manifest, changed=True))
    lines = capsys.readouterr().out.splitlines()
    said = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in lines if "│" in line}
    assert said["precision fp32"].startswith("chosen: 0 of 500 class ids differ")
    assert said["precision bf16"].startswith("rejected: 7 of 500 class ids")
    assert said["release"] == f"0123 of topic in {tmp_path / 'repository'}"


def test_prints_ten_of_20000_labels(tmp_path, monkeypatch, capsys):
    release = tmp_path / "repository" / "topic" / "releases" / "0123"
    release.mkdir(parents=True)
    for name in ("model.pt", "tokenizer.json"):
        (release / name).touch()
    manifest = {
        "release": "0123", "checkpoint": "a", "architecture": "bert", "graph": "packed", "multi_label": False,
        "labels": [f"label {index}" for index in range(20_000)], "max_length": 128, "precision": "fp32", "attempts": [],
    }  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    print_build(Built(release, manifest, changed=True))
    output = capsys.readouterr().out
    assert "20000, single-label: label 0, label 1," in output
    assert "label 9 and 19990 more" in output
    assert len(output) < 10_000
