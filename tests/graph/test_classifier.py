"""Whatever integers arrive, the exported file answers the rows it can and refuses the others, row by row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.checkpoints import KINDS
from tests.support.token_batches import MAX_LOGIT_ERROR, SAME, answers, batch, eager

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS)
def test_padded_columns_may_hold_any_id(subject, kind):
    own = subject(kind)
    ids, mask = batch(own, [9, 3, 30], width=40)
    _, clean = answers(own.exported, ids, mask)
    for filler in (5, -1, 10**12):
        _, filled = answers(own.exported, torch.where(mask == 1, ids, filler), mask)
        assert (filled - clean).abs().max() < SAME


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
    """But for 2, which means the second text of a pair where a checkpoint makes a difference."""
    own = subject(kind)
    ids, mask = batch(own, [6, 20, 11], width=32)
    _, expected = answers(own.exported, ids, mask)
    for value in (3, -1, 255, 2**62) if own.checkpoint.token_types == 2 else (2, 3, -1, 255, 2**62):
        _, found = answers(own.exported, ids, mask * value)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad_id", [-1, "vocab_size", 2**40, -(2**63), 2**63 - 1])
def test_an_unknown_id_costs_only_its_own_row(subject, kind, bad_id):
    own = subject(kind)
    vocab_size = own.model.get_input_embeddings().num_embeddings
    bad_id = vocab_size if bad_id == "vocab_size" else bad_id
    ids, mask = batch(own, [7, 20, 11], width=32)
    ids[0, 2], ids[0, 3] = 0, vocab_size - 1  # the first and the last that are known
    clean_ids, clean = answers(own.exported, ids, mask)
    assert (eager(own, ids, mask).softmax(1) - clean).abs().max() < MAX_LOGIT_ERROR
    ids[1, 4] = bad_id
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert class_ids.tolist() == [clean_ids[0], -1, clean_ids[2]]
    assert (probabilities[1] == 0).all()
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
    mask[2, 128] = 1  # the first that has no position
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert class_ids[2] == -1
    assert (probabilities[2] == 0).all()
    assert (probabilities[:2] - expected[:2]).abs().max() < SAME
    complaints = own.exported.check_inputs(ids, mask)
    assert complaints[:2] == ["", ""]
    assert "column 128" in complaints[2]
    assert "0 to 127" in complaints[2]


@pytest.mark.parametrize(("ids_width", "mask_width"), [(8, 9), (9, 8), (8, 0), (0, 8), (0, 0)])
@pytest.mark.parametrize("kind", ["bert", "megatron-bert"])
def test_inputs_of_different_widths_are_never_answered(subject, kind, ids_width, mask_width):
    ids = torch.full((2, ids_width), 5)
    mask = torch.ones((2, mask_width), dtype=torch.int64)
    complaints = subject(kind).exported.check_inputs(ids, mask)
    assert len(complaints) == 2
    assert all(f"{ids_width} columns and INPUT__1 {mask_width}" in complaint for complaint in complaints)
    # NVIDIA's backend does not ask check_inputs first.
    with pytest.raises((RuntimeError, torch.jit.Error)):
        answers(subject(kind).exported, ids, mask)


@pytest.mark.parametrize("kind", ["bert", "roberta", "megatron-bert"])
def test_multi_label_probabilities_are_sigmoids(subject, kind):
    own = subject(kind, multi_label=True)
    ids, mask = batch(own, [5, 60, 17], width=64)
    logits = eager(own, ids, mask)
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert (probabilities - logits.sigmoid()).abs().max() < MAX_LOGIT_ERROR
    assert class_ids.tolist() == logits.argmax(1).tolist()


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
@pytest.mark.parametrize("kind", ["bert", "megatron-bert"])
def test_any_integers_are_answered_or_refused_row_by_row(subject, kind, rows):
    own = subject(kind)
    ids, mask = torch.tensor(rows).unbind(2)
    counts = mask != 0
    counts[:, 0] = True
    known = (ids >= 0) & (ids < own.model.config.vocab_size) & (torch.arange(ids.size(1)) < 128)
    refused = (counts & ~known).any(1)
    class_ids, probabilities = answers(own.exported, ids, mask)
    assert ((class_ids == -1) == refused).all()
    assert ((probabilities == 0).all(1) == refused).all()
    assert probabilities.isfinite().all()  # JSON has no NaN
    complaints = own.exported.check_inputs(ids, mask) or [""] * len(ids)
    assert [complaint != "" for complaint in complaints] == refused.tolist()
    if not refused.all():
        good = ids[~refused, :128] * counts[~refused, :128]
        expected = eager(own, good, counts[~refused, :128].long()).softmax(1)
        assert (probabilities[~refused] - expected).abs().max() < MAX_LOGIT_ERROR
