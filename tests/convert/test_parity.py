"""The gate between a written file and the repository: only files that answer like Hugging Face pass."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from build_scripts.convert import gate_texts, parity, precision
from build_scripts.convert.export import Graph, export, graphs
from build_scripts.convert.parity import Parity, measure, passes, reference, summed
from build_scripts.convert.precision import choose_precision
from build_scripts.convert.unseen import Unseen
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from build_scripts.releases.store import read_manifest
from tests.support.texts import HEADLINES, HOSTILE

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = [*HEADLINES[:12], *HOSTILE[:12]]


def judge(expected: torch.Tensor, class_ids: torch.Tensor, found: torch.Tensor) -> Parity:
    return summed(parity.judge(expected, class_ids, found))


# Three texts: clear, near tie, clear.
EXPECTED = torch.tensor([[0.7, 0.2, 0.1], [0.404, 0.4, 0.196], [0.1, 0.1, 0.8]])
IDS = torch.tensor([0, 0, 2])


def test_equal_answers_have_no_error():
    assert judge(EXPECTED, IDS, EXPECTED) == Parity(texts=3, wrong=0, near_ties=0, max_probability_error=0.0)


def test_different_class_id_is_wrong():
    assert judge(EXPECTED, torch.tensor([1, 0, 2]), EXPECTED).wrong == 1
    assert judge(EXPECTED, torch.tensor([1, 0, 1]), EXPECTED).wrong == 2


def test_refused_row_is_wrong():
    assert judge(EXPECTED, torch.tensor([-1, 0, 2]), EXPECTED).wrong == 1


def test_counts_near_ties_separately():
    found = judge(EXPECTED, torch.tensor([0, 1, 2]), EXPECTED)
    assert (found.wrong, found.near_ties) == (0, 1)


def test_reports_the_largest_probability_error():
    moved = EXPECTED.clone()
    moved[2, 1] += 0.05
    moved[0, 0] -= 0.01
    assert judge(EXPECTED, IDS, moved).max_probability_error == pytest.approx(0.05)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_never_pass(value):
    broken = EXPECTED.clone()
    broken[1, 2] = value
    found = judge(EXPECTED, IDS, broken)
    assert found.max_probability_error >= 1
    assert not any(passes(found, name) for name in ("fp32", "bf16", "fp16"))


@pytest.mark.parametrize("precision_", ["fp32", "bf16", "fp16"])
def test_one_wrong_class_id_fails(precision_):
    good = Parity(texts=1000, wrong=0, near_ties=3, max_probability_error=1e-5)
    assert passes(good, precision_)
    assert not passes(Parity(texts=1000, wrong=1, near_ties=3, max_probability_error=1e-5), precision_)


@pytest.mark.parametrize(("precision_", "limit"), [("fp32", 1e-4), ("bf16", 0.02), ("fp16", 0.02)])
def test_limits_the_probability_error(precision_, limit):
    def moved(error: float) -> Parity:
        return Parity(texts=10, wrong=0, near_ties=0, max_probability_error=error)

    assert passes(moved(0.99 * limit), precision_)
    assert not passes(moved(1.01 * limit), precision_)


@pytest.mark.parametrize(("margin", "wrong"), [(0.009, 0), (0.011, 1)])
def test_near_tie_has_a_margin_below_a_hundredth(margin, wrong):
    row = torch.tensor([[0.5 + margin / 2, 0.5 - margin / 2]])
    found = judge(row, torch.tensor([1]), row)
    assert (found.wrong, found.near_ties) == (wrong, 1 - wrong)


@pytest.mark.parametrize("kind", ["bert", "roberta", "megatron-bert"])
def test_reference_is_plain_hugging_face(subject, kind):
    own = subject(kind)
    found = reference(own.checkpoint, TEXTS).probabilities
    with torch.inference_mode():
        for text, row in zip(TEXTS, found, strict=True):
            logits = own.model(**own.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")).logits[0]
            assert (logits.softmax(0) - row).abs().max() < 1e-6


@pytest.mark.parametrize("multi_label", [False, True])
def test_gate_passes_a_good_file_and_stops_a_damaged_one(subject, tmp_path, multi_label):
    own = subject("bert", multi_label=multi_label)
    expected = reference(own.checkpoint, TEXTS)
    assert passes(measure(own.file(), own.checkpoint, expected), "fp32")
    file = torch.jit.load(str(own.file()))
    with torch.no_grad():
        file.logits.words[own.tokenizer.convert_tokens_to_ids("the")] *= 1.2  # one token among 500
    file.save(str(tmp_path / "damaged.pt"))
    assert not passes(measure(tmp_path / "damaged.pt", own.checkpoint, expected), "fp32")


def test_measures_every_text(subject):
    """Also with numbers that are no multiple of a batch size."""
    own = subject("bert")
    for texts in (1, 2, 11, 13, 24):
        expected = reference(own.checkpoint, TEXTS[:texts])
        assert measure(own.file(), own.checkpoint, expected).texts == texts
        expected.probabilities[-1] = expected.probabilities[-1].flip(0)
        assert not passes(measure(own.file(), own.checkpoint, expected), "fp32")


GOOD = Parity(texts=10, wrong=0, near_ties=0, max_probability_error=1e-6)
BAD = Parity(texts=10, wrong=1, near_ties=0, max_probability_error=0.3)


@pytest.fixture
def measured(monkeypatch):
    """measured(fp32=(parity, milliseconds), …): the results of this machine's precisions; nothing is exported."""

    def set_results(unsafe: tuple[str, ...] = (), **results: tuple[Parity, float]) -> None:
        monkeypatch.setattr(precision, "cpu_precisions", lambda: list(results))
        monkeypatch.setattr(precision, "export", lambda *_: None)
        monkeypatch.setattr(precision, "measure", lambda file, *_: results[file.name.split(".")[1]][0])
        monkeypatch.setattr(precision, "differences", lambda file, *_: file.name.split(".")[1])
        monkeypatch.setattr(precision, "unseen", lambda name, _: Unseen(9, 0, 0, 0, 0, 0, name not in unsafe))
        monkeypatch.setattr(precision, "timings", lambda files, *_: {name: results[name][1] for name in files})

    return set_results


def chosen(subject, asked: str, directory, packed: bool = True) -> precision.Choice:
    checkpoint = subject("bert").checkpoint
    graph = graphs(checkpoint)[0] if packed else Graph()
    answers = parity.Reference([], EXPECTED)
    return choose_precision(checkpoint, graph, asked, answers, answers, directory)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"fp32": (GOOD, 9.0), "bf16": (GOOD, 5.0)}, "bf16"),
        ({"fp32": (GOOD, 5.0), "bf16": (GOOD, 9.0)}, "fp32"),
        ({"fp32": (GOOD, 9.0), "bf16": (BAD, 5.0)}, "fp32"),
        ({"fp32": (GOOD, 9.0), "fp16": (BAD, 1.0), "bf16": (GOOD, 5.0)}, "bf16"),
        ({"fp32": (GOOD, 9.0), "fp16": (BAD, 1.0), "bf16": (BAD, 5.0)}, "fp32"),
    ],
)
def test_auto_takes_the_fastest_passing_precision(subject, measured, tmp_path, results, expected):
    measured(**results)
    choice = chosen(subject, "auto", tmp_path)
    assert choice.chosen.precision == expected
    assert {attempt.precision: attempt.passed for attempt in choice.attempts} == {
        name: result is GOOD for name, (result, _) in results.items()
    }


def test_auto_leaves_out_a_precision_whose_bound_breaks_the_promise(subject, measured, tmp_path):
    measured(fp32=(GOOD, 9.0), fp16=(GOOD, 6.0), bf16=(GOOD, 5.0), unsafe=("bf16",))
    assert chosen(subject, "auto", tmp_path).chosen.precision == "fp16"
    assert chosen(subject, "bf16", tmp_path).chosen.precision == "bf16"  # the user's own choice passed the gate


def test_auto_needs_no_bound_for_fp32(subject, measured, tmp_path):
    measured(fp32=(GOOD, 9.0), bf16=(GOOD, 5.0), unsafe=("fp32", "bf16"))
    assert chosen(subject, "auto", tmp_path).chosen.precision == "fp32"


def test_single_text_weighs_as_much_as_a_batch(subject, monkeypatch):
    """Otherwise noise decides between precisions that are level on batches but not on single texts."""
    milliseconds = {"fp32": {1: 5.0, 8: 20.0}, "fp16": {1: 3.5, 8: 22.0}, "bf16": {1: 4.5, 8: 25.0}}
    now = [0.0]

    class Model:
        def __init__(self, name: str):
            self.name = name

        def eval(self):
            return self

        def __call__(self, input_ids, attention_mask):
            now[0] += milliseconds[self.name][len(input_ids)] / 1e3
            return (torch.zeros(len(input_ids)),)

    monkeypatch.setattr(precision, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(precision.torch.jit, "load", lambda file, **_: Model(file))
    found = precision.timings({name: name for name in milliseconds}, subject("bert").checkpoint, HEADLINES, "cpu")
    assert found == pytest.approx({"fp32": 10.0, "fp16": 77.0**0.5, "bf16": 112.5**0.5})


@pytest.mark.parametrize(("packed", "expected"), [(True, "fp16"), (False, "bf16")])
def test_auto_tries_fp16_weights_for_the_packed_graph_alone(subject, measured, tmp_path, packed, expected):
    measured(fp32=(GOOD, 9.0), bf16=(GOOD, 5.0), fp16=(GOOD, 3.0))
    assert chosen(subject, "auto", tmp_path, packed).chosen.precision == expected
    assert chosen(subject, "fp16", tmp_path, packed).chosen.precision == "fp16"


def test_weights_beyond_fp16_fail_the_gate(subject, tmp_path):
    """FBGEMM clamps larger weights to 65504: a finite answer, and a wrong one."""
    own = subject("bert")
    checkpoint = replace(own.checkpoint, model=copy.deepcopy(own.model))
    layer = checkpoint.model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[:4] *= 1e6
        layer.intermediate.dense.bias[:4] *= 1e6
        layer.output.dense.weight[:, :4] *= 1e-6
    for name in ("fp32", "fp16"):
        export(checkpoint, graphs(checkpoint)[0], name, tmp_path / name)
    expected = reference(checkpoint, TEXTS)
    assert passes(measure(tmp_path / "fp32", checkpoint, expected), "fp32")
    assert passes(measure(own.file("fp16"), own.checkpoint, reference(own.checkpoint, TEXTS)), "fp16")
    assert not passes(measure(tmp_path / "fp16", checkpoint, expected), "fp16")


@pytest.mark.parametrize("asked", ["auto", "fp32", "bf16"])
def test_refuses_a_wrong_graph_with_its_figures(subject, measured, tmp_path, asked):
    measured(fp32=(BAD, 9.0), bf16=(GOOD, 5.0))
    with pytest.raises(ServingError, match=r"bert: .* 1 of 10 class ids differ .* a probability moves by 0\.3"):
        chosen(subject, asked, tmp_path)


def test_refuses_a_requested_precision_that_fails(subject, measured, tmp_path):
    measured(fp32=(GOOD, 9.0), bf16=(BAD, 5.0))
    says = r"PRECISION=bf16: 1 of 10 class ids differ .* by 0\.3 \(the limit is 0\.02\); use PRECISION=auto or fp32"
    with pytest.raises(ServingError, match=says):
        chosen(subject, "bf16", tmp_path)
    assert chosen(subject, "auto", tmp_path).chosen.precision == "fp32"


@pytest.mark.parametrize("kind", ["bert-chinese", "megatron-bert"])
def test_build_compares_every_calibration_text(subject, tmp_path, kind):
    calibration = tmp_path / "texts.txt"
    calibration.write_text("\n\n".join(HEADLINES[:20]), encoding="utf-8")
    built = build(
        BuildOptions(model=str(subject(kind).directory), calibration=calibration, repository=tmp_path / "repository")
    )
    manifest = read_manifest(built.release)
    attempts = {attempt["precision"]: attempt for attempt in manifest["attempts"]}
    assert attempts["fp32"]["passed"]
    texts = gate_texts.gate_texts(subject(kind).checkpoint, HEADLINES[:20], users=True)
    compared = len(texts.ordinary) + len(texts.hard)
    assert all(attempt["unseen"]["texts"] == len(texts.held_out) for attempt in attempts.values())
    assert manifest["unseen"] == attempts[manifest["precision"]]["unseen"]
    assert all(attempt["parity"]["texts"] == compared for attempt in attempts.values())
    assert attempts[manifest["precision"]]["passed"]
    labels = (built.release / "labels.txt").read_text(encoding="utf-8").splitlines()
    config = subject(kind).model.config
    assert labels == [config.id2label[index] for index in range(config.num_labels)]
    files = sorted(path.name for path in built.release.iterdir())
    assert files == ["labels.txt", "manifest.json", "measured.json", "model.pt", "tokenizer.json", "tokenizers"]
