"""No answer depends on who shares the batch: not on neighbours, not on padding, not on special tokens in any text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from build_scripts.convert import batch_modes, parity
from build_scripts.convert.export import export
from build_scripts.convert.parity import measure, reference
from build_scripts.convert.precision import passes
from build_scripts.convert.traced import PADDED, Way
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from tests.support.oracle import HuggingFace
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


def batches(checkpoint, texts: list[str]) -> list[tuple[list[str], torch.Tensor, torch.Tensor]]:
    """Alone, in pairs, all together: the texts with their input_ids and attention_mask."""
    groups = [[text] for text in texts] + [texts[i : i + 2] for i in range(0, len(texts), 2)] + [texts, texts[::-1]]
    return [(group, *checkpoint.tokenize(group)) for group in groups]


COMPANY = ["one </s> two </s> three", "a plain neighbour", "<pad>", "", "</s>", "one <mask> two", "</s></s> again", "b"]


def test_a_model_that_pools_at_a_token_answers_each_text_by_itself(subject, tmp_path):
    """BART reads the last </s> of each text; in a batch, Hugging Face reads that many of every row."""
    own = subject("bart")
    checkpoint = batch_modes.settle(own.checkpoint, tmp_path)
    assert checkpoint.way == Way(alone=True)
    export(checkpoint, "fp32", tmp_path / "model.pt")
    model = torch.jit.load(str(tmp_path / "model.pt"))
    oracle = HuggingFace(own.directory, 128)
    with torch.inference_mode():
        for texts, input_ids, attention_mask in batches(checkpoint, COMPANY):
            _, probabilities = model(input_ids, attention_mask)
            assert (probabilities - oracle.probabilities(texts)).abs().max() < MAX_LOGIT_ERROR


def test_the_warm_up_tensor_is_answered_by_a_model_that_pools_at_a_token(subject, tmp_path):
    checkpoint = batch_modes.settle(subject("bart").checkpoint, tmp_path)
    export(checkpoint, "fp32", tmp_path / "model.pt")
    model = torch.jit.load(str(tmp_path / "model.pt"))
    input_ids, attention_mask = checkpoint.tokenize(["a plain neighbour"])
    zeros = torch.zeros_like(input_ids)
    with torch.inference_mode():
        _, alone = model(zeros, zeros)
        _, both = model(torch.cat([zeros, input_ids]), torch.cat([zeros, attention_mask]))
        _, neighbour = model(input_ids, attention_mask)
    assert alone.isfinite().all()
    assert torch.equal(both[0], alone[0])
    assert torch.equal(both[1], neighbour[0])


def test_the_gate_sees_that_an_answer_depends_on_the_company(subject, tmp_path):
    """The padded way answers every plain batch of BART rightly; with </s> in the text it does not."""
    checkpoint = replace(subject("bart").checkpoint, way=PADDED)
    export(checkpoint, "fp32", tmp_path / "model.pt")
    texts = parity.interleaved(parity.HOSTILE_TEXTS, parity.special_token_texts(checkpoint.tokenizer))
    try:
        passed = passes(measure(tmp_path / "model.pt", checkpoint, reference(checkpoint, texts)), "fp32")
    except (RuntimeError, torch.jit.Error):
        passed = False
    assert not passed


class NoZeros(torch.nn.Module):
    """A file that answers every text and fails at the row of zeros with which a server warms up."""

    def __init__(self, file: Path):
        super().__init__()
        self.model = torch.jit.load(str(file))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if int(attention_mask.sum(1).min()) == 0:
            raise RuntimeError("nothing in a row")
        return self.model(input_ids, attention_mask)


def test_the_gate_tries_the_warm_up_tensor(subject, tmp_path):
    own = subject("bert")
    torch.jit.script(NoZeros(own.file())).save(str(tmp_path / "model.pt"))
    with pytest.raises((RuntimeError, torch.jit.Error), match="nothing in a row"):
        measure(tmp_path / "model.pt", own.checkpoint, reference(own.checkpoint, ["one", "two words"]))


@pytest.mark.parametrize("kind", ["bart", "bert"])
def test_a_build_of_any_kind_ends_in_a_file_that_answers(subject, kind, tmp_path):
    calibration = tmp_path / "texts.txt"
    calibration.write_text("one\ntwo words\nrather more words than that\n", encoding="utf-8")
    options = {"precision": "fp32", "calibration": calibration, "repository": tmp_path / "repository"}
    built = build(BuildOptions(model=str(subject(kind).directory), **options))
    model = torch.jit.load(str(built.release / "model.pt"))
    zeros = torch.zeros(1, 512, dtype=torch.int64)
    _, probabilities = model(zeros, zeros)
    assert probabilities.isfinite().all()
    graph = "packed (padding only inside attention)" if kind == "bert" else str(Way(alone=True))
    assert built.manifest["graph"] == graph


def test_what_no_way_answers_is_refused_with_the_reason(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_modes, "passes", lambda *_: False)
    with pytest.raises(ServingError, match=r"albert: no TorchScript file answers like Hugging Face.*moves by"):
        batch_modes.settle(subject("albert").checkpoint, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_stand_once_and_several_times_beside_texts_without(subject):
    tokenizer = subject("roberta").tokenizer
    texts = parity.special_token_texts(tokenizer)
    for token in tokenizer.all_special_tokens:
        assert {1, 3} <= {text.count(token) for text in texts}
        assert 0 in {text.count(token) for text in texts}


@pytest.mark.parametrize(("texts", "others"), [(10, 3), (3, 10), (0, 2), (2, 0), (9, 3)])
def test_texts_are_mixed_and_none_is_lost(texts, others):
    one, other = [f"t{i}" for i in range(texts)], [f"o{i}" for i in range(others)]
    mixed = parity.interleaved(one, other)
    assert sorted(mixed) == sorted(one + other)
    assert [text for text in mixed if text in one] == one
