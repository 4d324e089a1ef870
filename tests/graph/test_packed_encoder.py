"""The exported file answers like Hugging Face's eager fp32 model, whatever the batch looks like."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from build_scripts.convert.families import encoder_parts
from build_scripts.graph.packed_linear import runs_fbgemm
from tests.support.checkpoints import FALLBACK_KINDS, KINDS, PACKED_KINDS
from tests.support.texts import PAIRS, VARIED
from tests.support.token_batches import MAX_LOGIT_ERROR, SAME, answers, assert_equals_hugging_face, batch

pytestmark = pytest.mark.usefixtures("one_thread")

FAIRSEQ_KINDS = ("roberta", "xlm-roberta", "camembert")


def lognormal_lengths(texts: int, longest: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(texts, generator=generator).mul(0.8).add(2.5).exp().long().clamp(1, longest).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_size_equals_hugging_face(subject, kind):
    for seed, texts in enumerate([1, 2, 3, 5, 8, 17, 64]):
        lengths = lognormal_lengths(texts, 128, seed)
        assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, seed=seed))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lengths",
    [[1], [128], [1] * 9, [128] * 3, [40] * 6, [1, 128], [128, 127, 9, 2, 1], list(range(1, 65)), list(range(65, 129))],
    ids=lambda lengths: f"{len(lengths)} texts of {min(lengths)} to {max(lengths)}",
)
def test_extreme_batches_equal_hugging_face(subject, kind, lengths):
    assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, width=128))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("name", ["gelu_python", "gelu_new", "gelu_pytorch_tanh", "silu", "swish", "quick_gelu", "mish",
                                  "tanh", "sigmoid", "leaky_relu", "relu2", "relu6", "linear"])  # fmt: skip
def test_every_activation_with_a_name_is_packed_and_equals_hugging_face(subject, kind, name):
    own = subject(kind, **{"activation" if kind == "distilbert" else "hidden_act": name})
    assert encoder_parts(own.checkpoint.model) is not None
    assert_equals_hugging_face(own, *batch(own, [5, 128, 17, 17, 1]))


@pytest.mark.slow
def test_an_unknown_activation_takes_the_fallback_and_equals_hugging_face(subject):
    from build_scripts.convert.export import graphs

    assert graphs(subject("bert").checkpoint)[0].packed
    own = subject("bert", hidden_act="hardswish")
    assert not graphs(own.checkpoint)[0].packed
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
def test_a_mask_with_holes_equals_hugging_face(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [40, 33, 64, 12, 64], width=64)
    holes = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    mask[holes] = 0
    mask[:, 0] = 1
    assert_equals_hugging_face(own, ids, mask)


@pytest.mark.parametrize("kind", FAIRSEQ_KINDS)
def test_a_padding_token_in_the_text_itself_equals_hugging_face(subject, kind):
    own = subject(kind)
    inputs = own.tokenizer(["markets <pad> rise <pad><pad> again", "no such token"], padding=True, return_tensors="pt")
    assert int((inputs["input_ids"][0] == own.tokenizer.pad_token_id).sum()) == 3
    assert_equals_hugging_face(own, inputs["input_ids"], inputs["attention_mask"])


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_single_texts_in_one_batch_equal_hugging_face(subject, kind):
    assert_pairs_equal_hugging_face(subject(kind))


def assert_pairs_equal_hugging_face(own) -> None:
    """Alone, with all that its tokenizer gives. Without token types a 2 in the mask means what a 1 does."""
    rows, expected = [], []
    for text in [*PAIRS, *VARIED[::7]]:
        columns = [[text]] if isinstance(text, str) else [[one] for one in text]
        encoded = own.tokenizer(*columns, truncation=True, max_length=128, return_tensors="pt")
        if encoded["input_ids"].numel() == 0:
            continue  # ModernBERT's tokenizer here adds no special tokens to a pair: transformers has no answer
        with torch.inference_mode():
            expected.append(own.model(**encoded).logits[0])
        types = encoded["token_type_ids"][0].tolist() if own.checkpoint.token_types == 2 else [0, 1] * 64
        rows.append([(token, 1 + kind) for token, kind in zip(encoded["input_ids"][0].tolist(), types)])
    ids, mask = torch.tensor([row + [(0, 0)] * (128 - len(row)) for row in rows]).unbind(2)
    _, probabilities = answers(own.exported, ids, mask)
    assert (probabilities - torch.stack(expected).softmax(1)).abs().max() < MAX_LOGIT_ERROR
    if own.checkpoint.token_types == 2:
        _, without = answers(own.exported, ids, (mask != 0).long())
        changed = (without - probabilities).abs().amax(1) > MAX_LOGIT_ERROR
        assert changed[: len(PAIRS)].any(), "the second text should make a difference"
        assert not changed[len(PAIRS) :].any()


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=16), seed=st.integers(0, 9), wider=st.integers(0, 9))
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_any_batch_of_lengths_equals_hugging_face(subject, kind, lengths, seed, wider):
    assert_equals_hugging_face(subject(kind), *batch(subject(kind), lengths, max(lengths) + wider, seed))


@pytest.mark.slow
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
    assert tokens <= rows_multiplied(subject(kind), subject(kind).exported, lengths, width=128) <= 1.0625 * tokens


@pytest.mark.skipif(not runs_fbgemm(), reason="needs FBGEMM")
@pytest.mark.parametrize("lengths", [[1], [9], [17], [3, 5, 3], [90, 60, 7, 1]])
def test_with_fp16_weights_no_row_is_added(subject, lengths):
    """FBGEMM, unlike oneDNN, prepares nothing for a number of rows."""
    own = subject("bert")
    file = torch.jit.load(str(own.file("fp16"))).eval()
    assert rows_multiplied(own, file, lengths, width=128) == sum(lengths)


def test_a_large_batch_is_computed_in_parts(subject):
    assert rows_multiplied(subject("bert"), subject("bert").exported, [128] * 64, width=128) == 2048


@pytest.mark.parametrize("kind", FALLBACK_KINDS)
def test_the_fallback_computes_padding_up_to_the_longest_text_only(subject, kind):
    assert rows_multiplied(subject(kind), subject(kind).exported, [3, 25, 2], width=128) == 3 * 25


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_a_lone_text_is_not_sorted_padded_or_joined_with_itself(subject, kind):
    wasted = {"aten::sort", "aten::cat", "aten::pad", "aten::remainder"}
    assert operators(subject(kind), [16]).isdisjoint(wasted)
    assert operators(subject(kind), [16, 9]) >= {"aten::sort", "aten::cat"}


def rows_multiplied(subject, file, lengths: list[int], width: int) -> int:
    """The largest number of rows that a linear layer of the file multiplies: counted, not timed.

    file: loaded by now, because packing weights would be counted, too.
    """
    with LinearRows() as counter:
        answers(file, *batch(subject, lengths, width))
    return max(counter.rows)


def operators(subject, lengths: list[int]) -> set[str]:
    """The names of all operators that run for a batch."""
    file = subject.exported
    with LinearRows() as watcher:
        answers(file, *batch(subject, lengths, width=128))
    return watcher.names


class LinearRows(TorchDispatchMode):
    """Watches every operator that runs, those of TorchScript included."""

    # Where each operator takes the rows.
    OPERANDS: ClassVar = {
        "mkldnn::_linear_pointwise": 0, "quantized::linear_dynamic_fp16": 0, "quantized::linear_relu_dynamic_fp16": 0,
        "aten::linear": 0, "aten::mm": 0, "aten::addmm": 1,
    }  # fmt: skip

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split(".")[0]
        self.names.add(name)
        operand = self.OPERANDS.get(name)
        if operand is not None:
            self.rows.append(math.prod(args[operand].shape[:-1]))
        return function(*args, **(kwargs or {}))
