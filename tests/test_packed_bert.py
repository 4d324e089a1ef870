"""The exported file answers like Hugging Face's eager fp32 model, whatever the batch looks like."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.checkpoints import FALLBACK_KINDS, KINDS, PACKED_KINDS
from tests.texts import VARIED

pytestmark = pytest.mark.usefixtures("one_thread")

MAX_LOGIT_ERROR = 1e-4
# Between two ways of batching the same texts.
SAME = 1e-5
FAIRSEQ_KINDS = ("roberta", "xlm-roberta", "camembert")


def batch(subject, lengths: list[int], width: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids of the whole vocabulary, special tokens included: input_ids, attention_mask (texts, width) int64."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(len(subject.tokenizer), mask.shape, generator=generator)
    return torch.where(mask == 1, ids, subject.tokenizer.pad_token_id), mask


def lognormal_lengths(texts: int, longest: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(texts, generator=generator).mul(0.8).add(2.5).exp().long().clamp(1, longest).tolist()


def eager(subject, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=input_ids, attention_mask=attention_mask).logits


def answers(file, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """class ids (batch,), probabilities (batch, labels)."""
    with torch.inference_mode():
        class_id, probabilities = file(input_ids, attention_mask)
    assert class_id.shape == (len(input_ids), 1)
    assert class_id.dtype == torch.int64
    assert probabilities.dtype == torch.float32
    return class_id[:, 0], probabilities


def assert_equals_hugging_face(subject, input_ids: Tensor, attention_mask: Tensor) -> None:
    expected = eager(subject, input_ids, attention_mask)
    with torch.inference_mode():
        logits = subject.exported.logits(input_ids, attention_mask)
    assert (logits - expected).abs().max() < MAX_LOGIT_ERROR
    class_ids, probabilities = answers(subject.exported, input_ids, attention_mask)
    assert class_ids.tolist() == expected.argmax(1).tolist()
    assert (probabilities - expected.softmax(1)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size_equals_hugging_face(subject, kind):
    for seed, texts in enumerate([1, 2, 3, 5, 8, 17, 64]):
        lengths = lognormal_lengths(texts, 128, seed)
        assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, seed=seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lengths",
    [[1], [128], [1] * 9, [128] * 3, [40] * 6, [1, 128], [128, 127, 9, 2, 1], list(range(1, 65))],
    ids=lambda lengths: f"{len(lengths)} texts of {min(lengths)} to {max(lengths)}",
)
def test_extreme_batches_equal_hugging_face(subject, kind, lengths):
    assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, width=128))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("lengths", [[512], [300, 300], [512, 511, 400, 257, 256, 255, 48, 47, 1]])
def test_512_columns_equal_hugging_face(subject, kind, lengths):
    wide = subject(kind, max_positions=512)
    assert_equals_hugging_face(wide, *batch(wide, lengths, width=512))


@pytest.mark.parametrize("kind", KINDS)
def test_varied_texts_equal_hugging_face_one_by_one(subject, kind):
    own = subject(kind)
    limits = {"truncation": True, "max_length": 128, "return_tensors": "pt"}
    with torch.inference_mode():
        expected = torch.cat([own.model(**own.tokenizer(text, **limits)).logits for text in VARIED])
    padded = own.tokenizer(VARIED, padding="max_length", **limits)
    class_ids, probabilities = answers(own.exported, padded["input_ids"], padded["attention_mask"])
    assert (probabilities - expected.softmax(1)).abs().max() < MAX_LOGIT_ERROR
    assert class_ids.tolist() == expected.argmax(1).tolist()
    assert len(set(class_ids.tolist())) > 2, "these texts should fall into several classes"


@pytest.mark.parametrize(
    "options",
    [{"num_hidden_layers": 1}, {"num_hidden_layers": 2}, {"hidden_act": "relu"}, {"labels": ["no", "yes"]}],
    ids=str,
)
def test_other_configurations_equal_hugging_face(subject, options):
    hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    assert_equals_hugging_face(subject("bert", **hashable), *batch(subject("bert", **hashable), [5, 128, 17, 17, 1]))


def test_an_unknown_activation_takes_the_fallback_and_equals_hugging_face(subject, tmp_path):
    from build_scripts.export import PACKED, TRIMMED, export

    assert export(subject("bert").checkpoint, "fp32", tmp_path / "model.pt") == PACKED
    own = subject("bert", hidden_act="gelu_new")
    assert export(own.checkpoint, "fp32", tmp_path / "model.pt") == TRIMMED
    assert_equals_hugging_face(own, *batch(own, [5, 128, 17, 17, 1]))


@pytest.mark.parametrize("kind", KINDS)
def test_order_neighbours_and_padding_change_nothing(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, lognormal_lengths(24, 100, seed=3), width=128)
    _, together = answers(own.exported, ids, mask)
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    _, reordered = answers(own.exported, ids[shuffled], mask[shuffled])
    assert (reordered - together[shuffled]).abs().max() < SAME
    for row in range(0, 24, 5):
        length = int(mask[row].sum())
        _, alone = answers(own.exported, ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert (alone - together[row]).abs().max() < SAME


@pytest.mark.parametrize("kind", KINDS)
def test_padded_columns_may_hold_any_id(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [9, 3, 30], width=40)
    _, clean = answers(own.exported, ids, mask)
    for filler in (5, -1, 10**12):
        _, filled = answers(own.exported, torch.where(mask == 1, ids, filler), mask)
        assert (filled - clean).abs().max() < SAME


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_with_holes_equals_hugging_face(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [40, 33, 64, 12, 64], width=64)
    holes = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    mask[holes] = 0
    mask[:, 0] = 1
    assert_equals_hugging_face(own, ids, mask)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_counts_at_least_its_first_token(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [6, 20, 11], width=32)
    first_alone = torch.zeros_like(mask)
    first_alone[:, 0] = 1
    _, expected = answers(own.exported, ids, first_alone)
    _, empty = answers(own.exported, ids, torch.zeros_like(mask))
    assert torch.equal(empty, expected)
    without_first = mask.clone()
    without_first[:, 0] = 0
    _, expected = answers(own.exported, ids, mask)
    _, found = answers(own.exported, ids, without_first)
    assert torch.equal(found, expected)
    assert (eager(own, ids, first_alone).softmax(1) - empty).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_any_mask_value_but_zero_counts_as_one(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [6, 20, 11], width=32)
    _, expected = answers(own.exported, ids, mask)
    for value in (2, -1, 255, 2**62):
        _, found = answers(own.exported, ids, mask * value)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad_id", [-1, "vocab_size", 2**40, -(2**63), 2**63 - 1])
def test_an_unknown_id_costs_only_its_own_row(subject, kind, bad_id):
    own = subject(kind)
    vocab_size = own.model.get_input_embeddings().num_embeddings
    bad_id = vocab_size if bad_id == "vocab_size" else bad_id
    ids, mask = batch(own, [7, 20, 11], width=32)
    clean_ids, clean = answers(own.exported, ids, mask)
    ids[1, 4] = bad_id
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert class_ids.tolist() == [clean_ids[0], -1, clean_ids[2]]
    assert probabilities[1].isnan().all()
    assert (probabilities[[0, 2]] - clean[[0, 2]]).abs().max() < SAME
    complaints = own.exported.check_inputs(ids, mask)
    assert [bool(complaint) for complaint in complaints] == [False, True, False]
    assert f"token id {bad_id} in column 4" in complaints[1]
    assert f"0 to {vocab_size - 1}" in complaints[1]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_beyond_the_positions_are_refused_if_they_count(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [7, 128, 11], width=150)
    _, expected = answers(own.exported, ids[:, :128], mask[:, :128])
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert (probabilities - expected).abs().max() < SAME
    assert own.exported.check_inputs(ids, mask) == []
    mask[2, 140] = 1
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert class_ids[2] == -1
    assert probabilities[2].isnan().all()
    assert (probabilities[:2] - expected[:2]).abs().max() < SAME
    complaints = own.exported.check_inputs(ids, mask)
    assert complaints[:2] == ["", ""]
    assert "column 140" in complaints[2]
    assert "0 to 127" in complaints[2]


@pytest.mark.parametrize(("ids_width", "mask_width"), [(8, 9), (9, 8), (8, 0), (0, 8), (0, 0)])
@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_inputs_of_different_widths_are_never_answered(subject, kind, ids_width, mask_width):
    ids = torch.full((2, ids_width), 5)
    mask = torch.ones((2, mask_width), dtype=torch.int64)
    complaints = subject(kind).exported.check_inputs(ids, mask)
    assert len(complaints) == 2
    assert all(f"{ids_width} columns and INPUT__1 {mask_width}" in complaint for complaint in complaints)
    # NVIDIA's backend does not ask check_inputs first.
    with pytest.raises((RuntimeError, torch.jit.Error)):
        answers(subject(kind).exported, ids, mask)


@pytest.mark.parametrize("kind", FAIRSEQ_KINDS)
def test_a_padding_token_in_the_text_itself_equals_hugging_face(subject, kind):
    own = subject(kind)
    inputs = own.tokenizer(["markets <pad> rise <pad><pad> again", "no such token"], padding=True, return_tensors="pt")
    assert int((inputs["input_ids"][0] == own.tokenizer.pad_token_id).sum()) == 3
    assert_equals_hugging_face(own, inputs["input_ids"], inputs["attention_mask"])


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_multi_label_probabilities_are_sigmoids(subject, kind):
    own = subject(kind, multi_label=True)
    ids, mask = batch(own, [5, 60, 17], width=64)
    logits = eager(own, ids, mask)
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert (probabilities - logits.sigmoid()).abs().max() < MAX_LOGIT_ERROR
    assert class_ids.tolist() == logits.argmax(1).tolist()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=16), seed=st.integers(0, 9), wider=st.integers(0, 9))
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_any_batch_of_lengths_equals_hugging_face(subject, kind, lengths, seed, wider):
    assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, max(lengths) + wider, seed))


# Ids around both ends of a vocabulary, masks that are none, rows of any width.
any_id = st.one_of(st.integers(0, 50), st.sampled_from([-1, 499, 500, 501, 2**31, -(2**63), 2**63 - 1]))
any_mask = st.sampled_from([0, 1, 1, 1, -1, 7])
any_rows = st.tuples(st.integers(1, 140), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.tuples(any_id, any_mask), min_size=shape[0], max_size=shape[0]),
        min_size=shape[1],
        max_size=shape[1],
    )
)


@settings(max_examples=60, deadline=None)
@given(rows=any_rows)
@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_any_integers_are_answered_or_refused_row_by_row(subject, kind, rows):
    own = subject(kind)
    ids, mask = torch.tensor(rows).unbind(2)
    counts = mask != 0
    counts[:, 0] = True
    known = (ids >= 0) & (ids < own.model.config.vocab_size) & (torch.arange(ids.size(1)) < 128)
    refused = (counts & ~known).any(1)
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert ((class_ids == -1) == refused).all()
    assert (probabilities.isnan().all(1) == refused).all()
    complaints = own.exported.check_inputs(ids, mask) or [""] * len(ids)
    assert [complaint != "" for complaint in complaints] == refused.tolist()
    if not refused.all():
        good = ids[~refused, :128] * counts[~refused, :128]
        expected = eager(own, good, counts[~refused, :128].long()).softmax(1)
        assert (probabilities[~refused] - expected).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_near_fp32(subject, kind, precision):
    own = subject(kind)
    ids, mask = batch(own, [1, 30, 30, 31, 47, 48, 100, 128, 128])
    file = torch.jit.load(str(own.file(precision))).eval()
    _, expected = answers(own.exported, ids, mask)
    _, found = answers(file, ids, mask)
    assert (found - expected).abs().max() < 0.05
    assert not torch.equal(found, expected), "weights of that precision must have been used"


@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("lengths", [[1], [3, 5, 2], [90, 60, 7, 1], [128] * 3])
def test_no_product_sees_padding(subject, kind, lengths):
    """But for a few rows: their number is rounded up, so that oneDNN meets few different ones."""
    tokens = sum(lengths)
    assert tokens <= rows_multiplied(subject(kind), lengths, width=128) <= 1.0625 * tokens


@pytest.mark.parametrize("kind", FALLBACK_KINDS)
def test_the_fallback_computes_padding_up_to_the_longest_text_only(subject, kind):
    assert rows_multiplied(subject(kind), [3, 25, 2], width=128) == 3 * 25


def rows_multiplied(subject, lengths: list[int], width: int) -> int:
    """The largest number of rows that a linear layer of the file multiplies: counted, not timed."""
    file = subject.exported  # loading packs weights, which is counted otherwise
    with LinearRows() as counter:
        answers(file, *batch(subject, lengths, width))
    return max(counter.rows)


class LinearRows(TorchDispatchMode):
    """Watches every operator that runs, those of TorchScript included."""

    # Where each operator takes the rows.
    OPERANDS: ClassVar = {"mkldnn::_linear_pointwise": 0, "aten::linear": 0, "aten::mm": 0, "aten::addmm": 1}

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        operand = self.OPERANDS.get(function.name().split(".")[0])
        if operand is not None:
            self.rows.append(math.prod(args[operand].shape[:-1]))
        return function(*args, **(kwargs or {}))
