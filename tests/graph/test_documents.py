"""Whole documents: the exported file answers windows of a text like Hugging Face, window by window, and pools them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from build_scripts.convert.checkpoint import load
from build_scripts.convert.export import export, graphs
from tests.support.token_batches import MAX_LOGIT_ERROR, answers, batch, eager

pytestmark = pytest.mark.usefixtures("one_thread")
# Tokens of each window, text by text. max_length is 128.
TEXTS = [[128, 128, 40], [7], [128], [128, 1], [60, 60, 60]]
KINDS = ("bert", "modernbert", "deberta-v2")


@pytest.fixture(scope="module")
def file(subject, tmp_path_factory):
    """file(subject, pooling): the fp32 file with DOCUMENTS=pooling, as the server loads it."""
    known = {}

    def make(own, pooling: str):
        if (own.directory, pooling) not in known:
            path = tmp_path_factory.mktemp("documents") / "model.pt"
            with torch.inference_mode(False):
                checkpoint = load(own.directory, pooling=pooling, stride=16)
            export(checkpoint, graphs(checkpoint)[0], "fp32", path)
            known[own.directory, pooling] = torch.jit.load(str(path)).eval()
        return known[own.directory, pooling]

    return make


def rows(own, texts: list[list[int]], width: int = 512):
    """input_ids, attention_mask: (texts, width); and each text's windows as (windows, 128) ids and mask."""
    ids, mask = batch(own, [1] * len(texts), width)
    windows = []
    for row, lengths in enumerate(texts):
        own_ids, own_mask = batch(own, lengths, 128, seed=row)
        windows.append((own_ids, own_mask))
        numbered = own_mask + 2 * torch.arange(len(lengths))[:, None]
        filled = own_mask.bool()
        ids[row, : sum(lengths)] = own_ids[filled]
        mask[row, : sum(lengths)] = numbered[filled]
    return ids, mask, windows


def pooled(own, windows, pooling: str, multi_label: bool) -> torch.Tensor:
    """(texts, labels): probabilities by Hugging Face's eager model."""
    found = []
    for ids, mask in windows:
        logits = torch.cat([eager(own, ids[row : row + 1, :n], mask[row : row + 1, :n]) for row, n in lengths_of(mask)])
        each = logits.sigmoid() if multi_label else logits
        one = each.mean(0) if pooling == "mean" else each.amax(0)
        found.append(one if multi_label else one.softmax(0))
    return torch.stack(found)


def lengths_of(mask: torch.Tensor):
    return enumerate(mask.sum(1).tolist())


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pools_the_windows_of_each_text(subject, file, kind, pooling, multi_label):
    own = subject(kind, multi_label=multi_label)
    ids, mask, windows = rows(own, TEXTS)
    class_ids, probabilities = answers(file(own, pooling), ids, mask)
    expected = pooled(own, windows, pooling, multi_label)
    assert (probabilities - expected).abs().max() < MAX_LOGIT_ERROR
    assert class_ids.tolist() == expected.argmax(1).tolist()
    assert file(own, pooling).check_inputs(ids, mask) == []


@pytest.mark.parametrize("kind", KINDS)
def test_short_texts_get_the_bits_of_the_ordinary_file(subject, file, kind):
    own = subject(kind)
    ids, mask = batch(own, [9, 128, 3, 60], width=200)
    mask[1, 40:] *= own.checkpoint.token_types  # the second text of a pair
    for found, expected in zip(answers(file(own, "mean"), ids, mask), answers(own.exported, ids, mask)):
        assert torch.equal(found, expected)


def test_second_windows_may_hold_a_pair(subject, file):
    """2 * n + 2 marks the second token type in window n."""
    own = subject("bert")
    ids, mask, windows = rows(own, [[30, 30]])
    mask[0, 10:30] = 2
    mask[0, 40:60] = 4
    _, probabilities = answers(file(own, "mean"), ids, mask)
    (own_ids, _) = windows[0]
    types = torch.zeros(2, 30, dtype=torch.int64)
    types[:, 10:] = 1
    with torch.inference_mode():
        logits = own.model(input_ids=own_ids[:, :30], token_type_ids=types).logits
    assert (probabilities[0] - logits.mean(0).softmax(0)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([129, 5], "a window of 129 columns; this model reads 128 of a window"),
        ([1] * 65, "65 windows; this model reads 64 of a text"),
    ],
)
def test_refuses_one_row_with_unreadable_windows(subject, file, texts, says):
    own = subject("bert")
    ids, mask, windows = rows(own, [[20, 20], [9]])
    bad_ids, bad_mask = batch(own, [sum(texts)], 512)
    bad_mask[0, : sum(texts)] += 2 * torch.arange(len(texts)).repeat_interleave(torch.tensor(texts))
    model = file(own, "mean")
    class_ids, probabilities = answers(model, torch.cat([ids, bad_ids]), torch.cat([mask, bad_mask]))
    assert class_ids[2] == -1
    assert (probabilities[2] == 0).all()
    assert (probabilities[:2] - pooled(own, windows, "mean", False)).abs().max() < MAX_LOGIT_ERROR
    complaints = model.check_inputs(torch.cat([ids, bad_ids]), torch.cat([mask, bad_mask]))
    assert complaints[:2] == ["", ""]
    assert says in complaints[2]


def test_refuses_an_unknown_id_in_a_later_window(subject, file):
    own = subject("bert")
    ids, mask, _ = rows(own, [[20, 20], [9]])
    ids[0, 30] = 10**12
    class_ids, _ = answers(file(own, "max"), ids, mask)
    assert class_ids[0] == -1
    assert class_ids[1] >= 0
    complaint, other = file(own, "max").check_inputs(ids, mask)
    assert "token id 1000000000000 in column 30" in complaint
    assert other == ""


def test_sigmoids_near_one_keep_their_order(subject, file):
    """fp32 rounds sigmoids of logits above 17 to 1."""
    own = subject("bert", multi_label=True)
    classifier = file(own, "mean")
    logits = torch.tensor([[20.0, 21.0], [22.0, 20.5]])
    assert logits.sigmoid().unique().tolist() == [1]
    assert classifier.pool(logits.double().sigmoid(), torch.tensor([1, 1])).argmax(1).tolist() == [1, 0]


any_mask = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 9, -1, -(2**63), 2**63 - 1])
any_id = st.sampled_from([0, 5, 499, 10**9, -1])


@settings(max_examples=60)
@given(rows=st.lists(st.lists(st.tuples(any_id, any_mask), min_size=140, max_size=140), min_size=1, max_size=3))
def test_any_integers_are_answered_or_refused_row_by_row(subject, file, rows):
    ids, mask = torch.tensor(rows).unbind(2)
    model = file(subject("bert"), "mean")
    class_ids, probabilities = answers(model, ids, mask)
    assert probabilities.isfinite().all()
    refused = class_ids == -1
    assert torch.equal((probabilities == 0).all(1), refused)
    complaints = model.check_inputs(ids, mask) or [""] * len(ids)
    assert [complaint != "" for complaint in complaints] == refused.tolist()
    real = mask != 0
    real[:, 0] = True
    unknown = (real & ((ids < 0) | (ids >= subject("bert").model.config.vocab_size))).any(1)
    assert refused[unknown].all()
