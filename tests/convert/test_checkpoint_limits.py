"""What a good checkpoint allows: positions, vocabulary and padding."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from build_scripts.convert.checkpoint import load, serving_tokenizer
from build_scripts.convert.tokenizer import check_vocabulary, pad_id
from build_scripts.core.errors import ServingError
from tests.support.checkpoints import make_checkpoint
from tests.support.damages import edit
from tests.support.texts import VARIED

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert", "albert", "modernbert", "deberta-v2"])
def test_usable_positions_bound_max_length(subject, kind):
    """RoBERTa and its kin keep rows that no column of a text uses."""
    assert load(subject(kind).directory).max_length == 128
    assert load(subject(kind).directory, 3).max_length == 3
    with pytest.raises(ServingError, match="MAX_LENGTH=129; expected 3 to 128"):
        load(subject(kind).directory, 129)


def test_more_than_512_tokens_only_on_request(subject):
    directory = subject("bert", max_positions=9000).directory
    assert load(directory).max_length == 512
    assert load(directory, 8192).max_length == 8192
    with pytest.raises(ServingError, match=r"MAX_LENGTH=8193; expected 3 to 8192: .* 9000 positions"):
        load(directory, 8193)


@pytest.mark.parametrize(
    ("of_config", "of_tokenizer", "expected"),
    [(0, 5, 0), (9, 5, 9), (10, 5, 5), (-1, 5, 5), (None, 0, 0), (None, 10, 0), (None, None, 0)],
)
def test_padding_is_the_first_id_within_the_embedding(of_config, of_tokenizer, expected):
    config, tokenizer = SimpleNamespace(pad_token_id=of_config), SimpleNamespace(pad_token_id=of_tokenizer)
    assert pad_id(tokenizer, config, rows=10) == expected


def test_vocabulary_may_fill_the_embedding_and_no_more(subject):
    tokenizer = subject("bert").tokenizer
    rows = max(tokenizer.get_vocab().values()) + 1
    check_vocabulary(tokenizer, rows, subject("bert").directory)
    with pytest.raises(ServingError, match=f"{rows - 1} rows"):
        check_vocabulary(tokenizer, rows - 1, subject("bert").directory)


def test_ignores_the_padding_side_of_a_checkpoint(subject, tmp_path):
    """A mask hides the padding, and the server pads on the right."""
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    edit(directory / "tokenizer_config.json", padding_side="left")
    expected = subject("bert").checkpoint.tokenize(VARIED)
    found = load(directory).tokenize(VARIED)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    served = serving_tokenizer(load(directory)).encode_batch(VARIED)
    assert [encoding.ids for encoding in served] == found[0].tolist()
