"""Evaluations end to end with a scripted model: figures, files, refusals, and what the release gate lets through."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import DEFAULT_COLUMNS, Columns
from build_scripts.quality import gate
from build_scripts.quality.difference import accuracies, compare, write_difference
from build_scripts.quality.evaluate import evaluate
from build_scripts.quality.gate import judge, release_check
from build_scripts.releases import store
from build_scripts.serving.swap import status
from tests.support.fake_releases import fake_release
from tests.support.scripted_source import ScriptedSource

LABELS = ["finance", "sports", "教育"]


def model(right: float, seed: int = 3, labels: list[str] = LABELS) -> ScriptedSource:
    """A model that reads the class from the text, "<number> of <class id>", and errs on a fixed share of the texts."""

    def answer(text) -> list[float]:
        number, class_id = map(int, text.split(" of "))
        chooser = random.Random(f"{seed} {number}")
        said = class_id if chooser.random() < right else (class_id + 1) % 3
        sure = chooser.uniform(0.5, 0.99)
        return [sure if index == said else (1 - sure) / 2 for index in range(3)]

    return ScriptedSource(labels, answer)


def labelled(directory: Path, texts: int = 300) -> Path:
    file = directory / "labelled.tsv"
    file.write_text("".join(f"{number} of {number % 3}\t{LABELS[number % 3]}\n" for number in range(texts)))
    return file


def test_an_evaluation_writes_a_report_with_everything_in_it(tmp_path):
    file = labelled(tmp_path)
    with file.open("a") as more:
        more.write("no label at all\n")
    done = evaluate(model(0.8), file, tmp_path / "out")
    text = done.report.read_text(encoding="utf-8")
    for heading in ("Figures", "Classes", "Largest confusions", "Coverage and accuracy", "Pictures", "Errors"):
        assert f"## {heading}" in text
    assert "line 301" in text  # the bad row
    assert {"confusion.png", "reliability.png", "coverage.png", "worst.tsv"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    figures = json.loads((tmp_path / "out" / "figures.json").read_text(encoding="utf-8"))
    assert figures["texts"] == 300
    assert figures["figures"]["accuracy"]["value"] == done.collected.right.mean()
    assert sum(figures["predicted_share"]) == pytest.approx(1.0, abs=1e-4)


def test_the_worst_errors_are_the_surest_ones(tmp_path):
    done = evaluate(model(0.7), labelled(tmp_path), tmp_path / "out")
    with (tmp_path / "out" / "worst.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    sure = [float(row["probability"]) for row in rows]
    assert len(rows) == 50
    assert sure == sorted(sure, reverse=True)
    assert all(row["true"] != row["predicted"] for row in rows)
    wrong = done.collected.probabilities.max(1)[~done.collected.right]
    assert sure[0] == pytest.approx(wrong.max(), abs=1e-4)


def test_a_label_that_the_model_lacks_ends_the_evaluation(tmp_path):
    file = tmp_path / "labelled.tsv"
    file.write_text("1 of 1\tsports\n2 of 2\tweather\n")
    with pytest.raises(ServingError, match=r"line 2 has the label 'weather'; this model's labels are finance, sports"):
        evaluate(model(1.0), file, tmp_path / "out")


def test_a_file_without_texts_is_refused(tmp_path):
    file = tmp_path / "labelled.tsv"
    file.write_text("only text\n")
    with pytest.raises(ServingError, match=r"holds no labelled text \(1 bad rows\)"):
        evaluate(model(1.0), file, tmp_path / "out")


def test_several_labels_a_text_get_thresholds_and_no_confusions(tmp_path):
    answers = {"none": [0.1, 0.2, 0.3], "both": [0.9, 0.8, 0.1], "third": [0.2, 0.6, 0.7]}
    file = tmp_path / "labelled.jsonl"
    truth = {"none": [], "both": ["finance", "sports"], "third": ["教育"]}
    rows = [{"text": text, "label": labels} for text, labels in truth.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = ScriptedSource(LABELS, lambda text: answers[text], multi_label=True)
    done = evaluate(source, file, tmp_path / "out")
    assert done.collected.right.tolist() == [True, True, False]
    text = done.report.read_text(encoding="utf-8")
    assert "## Best threshold of each label" in text
    assert "confusion" not in text


def test_a_difference_counts_and_ranks_what_changes(tmp_path):
    found = compare(model(0.9, seed=1), model(0.9, seed=2), labelled(tmp_path), DEFAULT_COLUMNS)
    live, candidate = model(0.9, seed=1), model(0.9, seed=2)
    texts = [f"{number} of {number % 3}" for number in range(300)]
    said = [[max(range(3), key=one.answer(text).__getitem__) for text in texts] for one in (live, candidate)]
    assert found.texts == 300
    assert found.changed == sum(a != b for a, b in zip(*said)) == sum(found.pairs.values())
    distances = [entry[0] for entry in found.moved]
    assert len(distances) == 100
    assert distances == sorted(distances, reverse=True)
    figures = accuracies(found)
    assert figures["live"].value == sum(a == n % 3 for n, a in enumerate(said[0])) / 300
    report = write_difference(tmp_path / "out", found, "live", "candidate").read_text(encoding="utf-8")
    assert f"{found.changed} of 300 class ids differ" in report


def test_plain_texts_are_enough_for_a_difference(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("1 of 1\n\n2 of 2\n")
    found = compare(model(1.0), model(1.0), file, DEFAULT_COLUMNS)
    assert (found.texts, found.changed, found.right) == (2, 0, [])


def test_the_labels_may_stand_in_another_order(tmp_path):
    reordered = [LABELS[2], LABELS[0], LABELS[1]]
    same = ScriptedSource(reordered, lambda text: [model(1.0).answer(text)[index] for index in (2, 0, 1)])
    found = compare(model(1.0), same, labelled(tmp_path, 30), DEFAULT_COLUMNS)
    assert found.changed == 0
    assert max(entry[0] for entry in found.moved) == 0


def test_the_gate_refuses_a_worse_model_and_names_the_report(tmp_path):
    with pytest.raises(
        ServingError, match=r"the candidate is worse: accuracy .* Nothing was switched; see .*report\.md"
    ):
        judge(model(0.9), model(0.8), labelled(tmp_path), tmp_path / "out", worse_by=0.01)


@pytest.mark.parametrize(("was", "now", "worse_by"), [(0.8, 0.9, 0.0), (0.8, 0.8, 0.0), (0.9, 0.8, 0.5)])
def test_the_gate_lets_better_and_allowed_models_through(was, now, worse_by, tmp_path):
    verdict = judge(model(was), model(now), labelled(tmp_path), tmp_path / "out", worse_by=worse_by)
    assert verdict.change.low <= verdict.change.value <= verdict.change.high


def test_the_gate_reads_the_given_columns_and_records_the_figures_for_status(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate, "EVALUATION", tmp_path / "out")
    monkeypatch.setattr(gate, "Served", lambda url, name: model(0.9))
    monkeypatch.setattr(gate, "InProcess", lambda release: model(0.9))
    file = tmp_path / "labelled.csv"
    lines = [f"{number} of {number % 3},{LABELS[number % 3]}" for number in range(60)]
    file.write_text("\n".join(["sentence,topic", *lines]), encoding="utf-8")
    fake_release(tmp_path, "1" * 12, labels=LABELS, precision="fp32")
    [release] = store.releases(tmp_path)
    before = store.digests(release)
    release_check(file, 0.01, "text_classifier", Columns("sentence", "pair", "topic"))(release, "nowhere")
    assert "on 60 texts" in capsys.readouterr().out
    manifest = store.read_manifest(release)
    assert manifest["evaluation"]["texts"] == 60
    assert {**store.digests(release), store.MEASURED: ""} == {**before, store.MEASURED: ""}
    assert re.search(
        r"accuracy 0\.\d{4} \(0\.\d{4} to 0\.\d{4}\) on 60 texts of labelled\.csv", status.figures(manifest)[0]
    )


def test_the_gate_refuses_a_model_without_a_live_label(tmp_path):
    fewer = model(1.0, labels=["finance", "sports", "weather"])
    with pytest.raises(ServingError, match="lacks the live model's label '教育'"):
        judge(model(1.0), fewer, labelled(tmp_path), tmp_path / "out", worse_by=0.01)
