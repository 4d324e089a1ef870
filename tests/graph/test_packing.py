"""Whatever the lengths, every text is computed once, and never more at once than a part and a bucket may hold."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from build_scripts.graph.packing import Packed, attention_width, parts_of, plan_buckets, round_up, unpad_input

NO_GAPS = torch.empty(0, dtype=torch.bool)
LENGTHS = st.lists(st.one_of(st.integers(1, 40), st.integers(1, 512)), min_size=1, max_size=64)


def packed(lengths: list[int], device: str = "cpu") -> Packed:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.arange(mask.numel()).view(mask.shape)  # each its own, so that none can stand for another
    return Packed(*(tensor.to(device) for tensor in unpad_input(ids, mask.long(), -1, False, False)))


@given(LENGTHS)
def test_the_parts_together_are_the_batch(lengths):
    whole = packed(lengths)
    parts = parts_of(whole)
    for field, tensor in zip(Packed._fields, whole):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), tensor)
    for part in parts:
        assert len(part.ids) == len(part.positions) == part.lengths.sum()
        assert len(part.order) == len(part.lengths)


@given(LENGTHS)
def test_a_part_has_at_most_2048_tokens_and_the_next_text_would_not_fit(lengths):
    parts = parts_of(packed(lengths))
    assert all(len(part.ids) <= 2048 for part in parts)
    assert all(len(part.ids) + after.lengths[0] > 2048 for part, after in itertools.pairwise(parts))


def test_a_text_longer_than_a_part_is_a_part():
    assert [part.lengths.tolist() for part in parts_of(packed([18, 3000, 2050, 2000, 30]))] == [
        [3000], [2050], [2000, 30, 18],
    ]  # fmt: skip


def test_other_devices_compute_the_whole_batch_at_once():
    assert len(parts_of(packed([512] * 64, "meta"))) == 1


@given(LENGTHS)
def test_the_buckets_hold_every_token_once_and_few_scores(lengths):
    ordered = torch.tensor(sorted(lengths, reverse=True))
    text, token = 0, 0
    for bucket in plan_buckets(ordered, NO_GAPS, 2, torch.float32):
        own = ordered[text : text + bucket.texts]
        assert (bucket.first_text, bucket.first_token, bucket.tokens) == (text, token, own.sum())
        assert bucket.texts == 1 or bucket.texts * own[0] ** 2 <= 512 * 512
        assert bucket.uniform == (len(set(own.tolist())) == 1)
        if not bucket.uniform:
            assert real_places(bucket.tokens_of, bucket.bias) == list(range(bucket.tokens))
        text, token = text + bucket.texts, token + bucket.tokens
    assert (text, token) == (len(lengths), sum(lengths))


@pytest.mark.parametrize(
    ("lengths", "texts"),
    [
        ([100, 70], [2]),
        ([100, 69], [1, 1]),
        ([20, 12], [2]),
        ([20, 11], [1, 1]),
        ([100, 70, 69], [2, 1]),
        ([362, 362, 362], [2, 1]),
        ([363, 363], [1, 1]),
        ([600, 600], [1, 1]),
    ],
    ids=str,
)
def test_a_bucket_ends_where_a_text_is_much_shorter_or_its_scores_are_too_many(lengths, texts):
    """70 % of the longest or 8 tokens less still join it; two texts of 362 tokens have fewer scores than one of 512."""
    assert [bucket.texts for bucket in plan_buckets(torch.tensor(lengths), NO_GAPS, 2, torch.float32)] == texts


def test_attention_is_as_wide_as_the_longest_text_and_no_wider_than_the_next_step():
    """The steps are 8, and 16 from 64 on; narrower than 16 is never faster."""
    widths = [attention_width(longest) for longest in range(1, 513)]
    assert sorted(set(widths)) == [*range(16, 65, 8), *range(80, 513, 16)]
    assert all(
        longest <= width < longest + (8 if width <= 64 else 16)
        for longest, width in enumerate(widths, 1)
        if longest > 8
    )


def real_places(tokens_of: Tensor, bias: Tensor) -> list[int]:
    """The tokens at the places that the bias does not hide."""
    return tokens_of[bias.flatten() == 0].tolist()


def test_few_numbers_of_rows_and_few_rows_too_many():
    rounded = [round_up(rows) for rows in range(1, 2049)]
    assert len(set(rounded)) == 92
    assert rounded == sorted(rounded)
    assert all(rows <= found <= 1.25 * rows for rows, found in enumerate(rounded, 1))
    assert all(found <= 1.0625 * rows for rows, found in enumerate(rounded, 1) if rows >= 128)
    assert all(rows <= round_up(rows) < rows + 64 for rows in range(2048, 1 << 15))  # a GPU has no parts
