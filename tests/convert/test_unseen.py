"""What an unseen text may lose: the bounds, the texts that give them, and what `auto` makes of them."""

from __future__ import annotations

import math
import random

import pytest
import torch

from build_scripts.convert.gate_texts import GENERATED, HELD_OUT, calibration_texts, gate_texts
from build_scripts.convert.parity import Differences
from build_scripts.convert.unseen import (
    BROKEN_LIMIT,
    CONFIDENCE,
    QUANTILE,
    probability_of_at_most,
    share_at_most,
    shift_at_most,
    unseen,
)
from build_scripts.convert.varied_texts import KINDS, lengths_around, varied_texts

pytestmark = pytest.mark.usefixtures("one_thread")


def differences(texts: int, wrong: int = 0, near_ties: int = 0, moved: int = 0, by: float = 0.0) -> Differences:
    shift = torch.zeros(texts)
    shift[texts - moved :] = by
    place = torch.arange(texts)
    return Differences(place < wrong, (place >= wrong) & (place < wrong + near_ties), shift)


@pytest.mark.parametrize("texts", [10, 300, 650])
def test_no_event_gives_the_rule_of_three(texts):
    assert share_at_most(0, texts) == pytest.approx(1 - (1 - CONFIDENCE) ** (1 / texts), abs=1e-9)
    assert share_at_most(0, texts) < 3 / texts


@pytest.mark.parametrize(("count", "of", "bound"), [(1, 10, 0.394163), (5, 100, 0.102253), (10, 10, 1.0)])
def test_share_is_bounded_as_by_clopper_and_pearson(count, of, bound):
    assert share_at_most(count, of) == pytest.approx(bound, abs=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_binomial_probabilities_equal_the_exact_sum(share):
    for count in range(13):
        exact = sum(math.comb(12, k) * share**k * (1 - share) ** (12 - k) for k in range(count + 1))
        assert probability_of_at_most(count, 12, share) == pytest.approx(min(1, exact))


def test_bounds_hold_in_95_of_100_samples():
    """Of samples whose true share is 1 %, at most 5 % give a smaller bound."""
    rng = random.Random(5)
    bounds = [share_at_most(sum(rng.random() < 0.01 for _ in range(HELD_OUT)), HELD_OUT) for _ in range(400)]
    assert sum(bound < 0.01 for bound in bounds) <= 0.08 * len(bounds)


def test_shift_is_an_order_statistic():
    assert shift_at_most(torch.arange(HELD_OUT).float()) == HELD_OUT - 3
    assert shift_at_most(torch.arange(299).float()) == 298  # 1 - QUANTILE ** 299 just exceeds CONFIDENCE
    assert QUANTILE**299 < 1 - CONFIDENCE < QUANTILE**298


def test_shift_of_too_few_texts_is_unbounded():
    assert shift_at_most(torch.zeros(298)) == 1.0


def test_counts_changed_ids_and_broken_limits():
    found = unseen(differences(HELD_OUT, wrong=1, near_ties=2, moved=3, by=0.03), limit=0.02)
    assert (found.texts, found.changed, found.broken) == (HELD_OUT, 3, 4)
    assert found.changed_at_most == share_at_most(3, HELD_OUT)
    assert not found.within_promise


@pytest.mark.parametrize(("broken", "within"), [(0, True), (2, True), (3, False)])
def test_promise_is_a_bound_of_one_percent(broken, within):
    assert BROKEN_LIMIT == 0.01
    assert unseen(differences(HELD_OUT, moved=broken, by=0.021), limit=0.02).within_promise is within


def test_generated_texts_are_the_same_every_time():
    sentences = calibration_texts()
    assert varied_texts(sentences, 50, seed=1) == varied_texts(sentences, 50, seed=1)
    assert not {*varied_texts(sentences, 50, seed=1)} & {*varied_texts(sentences, 50, seed=2)}


def test_generated_texts_cover_scripts_symbols_emoji_code_and_lengths():
    texts = varied_texts(calibration_texts(), 20 * len(KINDS), seed=1)
    characters = set("".join(texts))
    for first, last in [(0x400, 0x52F), (0x600, 0x6FF), (0x900, 0x97F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]:
        assert any(first <= ord(character) <= last for character in characters)
    assert {"∑", "→", "€", "😂", "\u200d", "{", ";", "%"} <= characters
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 1
    assert max(lengths) > 300


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_lengths_lie_around_windows_and_max_length(subject, kind):
    """ModernBERT's window here is 16 tokens: half of it and one is where answers change first."""
    checkpoint = subject(kind).checkpoint
    counts = {len(checkpoint.tokenizer(text)["input_ids"]) for text in lengths_around(checkpoint, calibration_texts())}
    edges = {64, checkpoint.max_length} | ({8, 16} if kind == "modernbert" else set())
    for edge in edges:
        assert any(edge - 3 <= count < edge for count in counts), (edge, counts)
        assert any(edge < count <= edge + 2 for count in counts), (edge, counts)


def test_held_out_texts_are_in_no_gate(subject):
    texts = gate_texts(subject("bert").checkpoint, calibration_texts())
    assert len(texts.held_out) == HELD_OUT
    seen = {*texts.ordinary, *texts.hard}
    assert sum(text in seen for text in texts.held_out) < 0.01 * HELD_OUT  # a single word may come twice
    assert any(isinstance(text, tuple) for text in texts.held_out)
    assert len(texts.ordinary) > len(calibration_texts()) + GENERATED


def test_long_user_file_holds_out_half_of_itself(subject):
    own = [f"text {number}" for number in range(2 * HELD_OUT)]
    texts = gate_texts(subject("bert").checkpoint, own, users=True)
    assert texts.own_texts
    assert {*texts.held_out} == {*own[1::2]}
    assert not {*texts.ordinary} & {*texts.held_out}
    assert {*own[::2]} <= {*texts.ordinary}


def test_short_user_file_is_all_for_the_gate(subject):
    own = [f"text {number}" for number in range(20)]
    texts = gate_texts(subject("bert").checkpoint, own, users=True)
    assert {*own} <= {*texts.ordinary}
    assert not {*own} & {*texts.held_out}
