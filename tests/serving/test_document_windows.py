"""The tokenizer model cuts whole documents into the windows that transformers' tokenizer gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving.test_tokenizer_model import KINDS, hugging_face_tokenizer, serve  # noqa: F401  (a fixture)
from tests.support.texts import HEADLINES, PAIRS, VARIED

DOCUMENTS = [" ".join((4 * HEADLINES)[start : start + count]) for start, count in enumerate([12, 16, 25, 30, 50, 99])]
MAX_LENGTH, STRIDE, WINDOWS = 128, 16, 64


def windows(tokenizer, text: str) -> list[list[int]]:
    limits = {"truncation": True, "max_length": MAX_LENGTH, "stride": STRIDE, "return_overflowing_tokens": True}
    return tokenizer(text, **limits)["input_ids"]


@pytest.fixture(scope="module", params=KINDS)
def documents(request, serve):  # noqa: F811
    return serve(hugging_face_tokenizer(request.param), MAX_LENGTH, STRIDE)


def answer(served, texts: list[str]):
    (response,) = served.execute([[text.encode() for text in texts]])
    assert response.error is None
    return tuple(response.outputs[name] for name in ("INPUT_IDS", "ATTENTION_MASK", "TOKENS", "TRUNCATED"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_are_those_of_transformers_on_either_side(serve, side):  # noqa: F811
    hugging_face = hugging_face_tokenizer("minilm")
    hugging_face.truncation_side = side
    assert_windows(serve(hugging_face, MAX_LENGTH, STRIDE))


def test_windows_match_every_tokenizer(documents):
    assert_windows(documents)


def assert_windows(served):
    texts = [*DOCUMENTS, *VARIED[:40]]
    ids, mask, tokens, truncated = answer(served, texts)
    assert ids.shape[1] in (1024, 2048, 4096, 8192)
    assert not truncated.any()
    several = 0
    for row, text in enumerate(texts):
        expected = windows(served.hugging_face, text)
        assert len(expected) <= WINDOWS
        several += len(expected) > 1
        # Mask values 2n + 1 and 2n + 2 mark window n, counted from 0.
        found = [ids[row][(mask[row] + 1) // 2 == number + 1].tolist() for number in range(len(expected))]
        assert found == expected
        assert (mask[row] != 0).sum() == sum(map(len, expected))
        assert tokens[row] == len(served.hugging_face(text)["input_ids"])
    assert several >= 6


def test_short_text_is_one_window_with_mask_1(documents):
    ids, mask, tokens, truncated = answer(documents, ["two words"])
    assert ids.shape == (1, MAX_LENGTH)
    assert mask.sum() == tokens[0] == len(windows(documents.hugging_face, "two words")[0])
    assert not truncated.any()


def test_reads_64_windows_and_reports_truncation(documents):
    whole = "word " * 20_000
    ids, mask, tokens, truncated = answer(documents, [whole, "short"])
    assert ids.shape == (2, MAX_LENGTH * WINDOWS)
    assert truncated[:, 0].tolist() == [True, False]
    assert mask[0].tolist() == [2 * number + 1 for number in range(WINDOWS) for _ in range(MAX_LENGTH)]
    assert tokens[0] == MAX_LENGTH + (WINDOWS - 1) * (MAX_LENGTH - 2 - STRIDE)
    assert np.array_equal(ids[0].reshape(WINDOWS, -1), windows(documents.hugging_face, whole)[:WINDOWS])


def test_pairs_are_truncated_and_not_cut_into_windows(serve):  # noqa: F811
    served = serve(hugging_face_tokenizer("minilm"), MAX_LENGTH, STRIDE)
    assert served.pairs(PAIRS) == served.expected_pairs(PAIRS)
