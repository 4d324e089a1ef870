"""Checkpoints with one label: rerankers and regressions give a score, with the activation that the checkpoint names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from build_scripts.convert import parity
from build_scripts.convert.checkpoint import load
from build_scripts.convert.gate_texts import PAIRS
from build_scripts.convert.parity import measure, passes, reference, summed
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.quality.answers import InProcess
from build_scripts.releases.pipeline import build
from build_scripts.releases.summary import print_build
from tests.support.checkpoints import make_checkpoint
from tests.support.texts import HEADLINES, HOSTILE
from tests.support.token_batches import answers

pytestmark = pytest.mark.usefixtures("one_thread")

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
TEXTS = [*HEADLINES[:10], *HOSTILE[:10], *PAIRS]


def one_label(directory: Path, **config: object) -> Path:
    return make_checkpoint("bert", directory, labels=["relevance"], **{"problem_type": None, **config})


def scorer(subject, activation: str):
    named = {"sbert_ce_default_activation_function": activation}
    return subject("bert", labels=("relevance",), problem_type=None, **named)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"problem_type": "regression"}, "identity"),
        ({}, "sigmoid"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "identity"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}, "problem_type": "regression"}, "sigmoid"),
        ({"sentence_transformers": {"version": "5.0.0"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
    ],
    ids=str,
)
def test_activation_is_the_checkpoints(tmp_path, config, expected):
    checkpoint = load(one_label(tmp_path / "a", **config))
    assert (checkpoint.score, checkpoint.multi_label) == (expected, False)


def test_newer_file_of_sentence_transformers_wins(tmp_path):
    directory = one_label(tmp_path / "a", sbert_ce_default_activation_function=SIGMOID)
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": IDENTITY}))
    assert load(directory).score == "identity"


def test_refuses_an_unknown_activation(tmp_path):
    tanh = "torch.nn.modules.activation.Tanh"
    directory = one_label(tmp_path / "a", sbert_ce_default_activation_function=tanh)
    with pytest.raises(ServingError, match=rf"config\.json asks for the activation '{tanh}'.*; expected .*Sigmoid or "):
        load(directory)


def test_several_labels_ignore_the_activation(subject):
    """A cross-encoder of sentence-transformers with three labels names the identity, for its own argmax."""
    own = subject("bert", labels=("a", "b", "c"), sbert_ce_default_activation_function=IDENTITY)
    assert (own.checkpoint.activation, own.checkpoint.score) == ("softmax", None)


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_file_gives_the_scores_of_transformers(subject, activation):
    """Alone and in a batch, single texts and pairs."""
    own = scorer(subject, activation)
    with torch.inference_mode():
        logits = []
        for text in TEXTS:
            both = (text,) if isinstance(text, str) else text
            columns = [[one] for one in both]
            encoded = own.tokenizer(*columns, truncation=True, max_length=128, return_tensors="pt")
            logits.append(own.model(**encoded).logits[0])
        expected = torch.stack(logits).sigmoid() if activation == SIGMOID else torch.stack(logits)
        class_ids, scores = own.exported(*own.checkpoint.tokenize(TEXTS))
        alone = torch.cat([own.exported(*own.checkpoint.tokenize([text]))[1] for text in TEXTS])
    assert class_ids.tolist() == [[0]] * len(TEXTS)
    assert scores.shape == (len(TEXTS), 1)
    assert expected.std() > 0.01
    assert (scores - expected).abs().max() < 1e-4
    assert (alone - expected).abs().max() < 1e-4


def test_refused_row_has_no_class(subject):
    own = scorer(subject, IDENTITY)
    ids, mask = own.checkpoint.tokenize(TEXTS[:2])
    ids[0, 1] = 10**6
    class_ids, scores = answers(own.exported, ids, mask)
    assert class_ids.tolist() == [-1, 0]
    assert scores[0].tolist() == [0.0]


@pytest.mark.parametrize("activation", [SIGMOID, IDENTITY])
def test_gate_passes_good_scores_and_stops_damaged_ones(subject, tmp_path, activation):
    own = scorer(subject, activation)
    expected = reference(own.checkpoint, TEXTS)
    assert passes(measure(own.file(), own.checkpoint, expected), "fp32")
    file = torch.jit.load(str(own.file()))
    with torch.no_grad():
        file.logits.words[own.tokenizer.convert_tokens_to_ids("the")] *= 1.2
    file.save(str(tmp_path / "damaged.pt"))
    assert not passes(measure(tmp_path / "damaged.pt", own.checkpoint, expected), "fp32")


@pytest.mark.parametrize(
    ("scores", "unit"),
    [
        ([-3.0, 1.0, 7.0], 10.0),
        ([1000.0, 1001.0, 1000.5], 100.1),  # rounding grows with the number, not with the spread
        ([0.001, 0.002, 0.003], 0.002),
        ([0.0, 0.0, 0.0], 1.0),
    ],
)
def test_limit_of_unbounded_scores_follows_their_scale(scores, unit):
    expected = torch.tensor(scores)[:, None]
    scale = parity.scale(expected, "identity")
    assert scale == pytest.approx(unit)
    ids = torch.zeros(3, dtype=torch.int64)
    for share in (0.9, 1.1):
        found = expected.double().clone()
        found[1] += share * 1e-4 * unit
        judged = summed(parity.judge(expected.double(), ids, found, scale))
        assert (judged.wrong, judged.near_ties) == (0, 0)
        assert passes(judged, "fp32") == (share < 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_number_never_pass(value):
    expected = torch.tensor([[-300.0], [1.0], [200.0]])
    found = expected.clone()
    found[1] = value
    judged = summed(parity.judge(expected, torch.zeros(3, dtype=torch.int64), found, 500.0))
    assert not any(passes(judged, name) for name in ("fp32", "bf16"))


def test_sigmoid_scores_have_the_limits_of_probabilities():
    assert parity.scale(torch.tensor([[0.1], [0.2]]), "sigmoid") == 1.0


def test_build_says_what_the_score_is(subject, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    directory = scorer(subject, IDENTITY).directory
    built = build(BuildOptions(model=str(directory), precision="fp32", repository=tmp_path / "repository"))
    print_build(built)
    said = capsys.readouterr().out
    assert (built.manifest["score"], built.manifest["multi_label"]) == ("identity", False)
    assert "identity, the logit, without bounds" in said
    assert "scores differ from Hugging Face's by at most" in said
    assert "of their spread" in said
    with pytest.raises(ServingError, match="gives a score and no classes; expected a classifier"):
        InProcess(built.release)
