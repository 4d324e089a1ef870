"""Every family and layout of the zoo becomes what the documentation says, and answers like plain transformers."""

from __future__ import annotations

import pytest
import torch

from build_scripts.convert.checkpoint import load
from build_scripts.core.errors import ServingError
from tests.support import zoo
from tests.support.checkpoints import KINDS
from tests.support.fp32_file import fp32_file
from tests.support.oracle import HuggingFace
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = pytest.mark.usefixtures("one_thread")

# Of several lengths, cut and not, with a literal special token; none is empty, which transformers cannot answer.
TEXTS = [
    "a",
    "Plain words here",
    "one </s> two <pad> three [SEP] four",
    "a rather longer text " * 4,
    "word " * 700,
    "?",
]


def quick(row: zoo.Row) -> bool:
    return row.family in KINDS and not row.of_pieces


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if quick(row) else pytest.mark.long) for row in zoo.ROWS],
    ids=lambda row: row.name,
)
def test_it_becomes_what_the_documentation_says_and_answers_like_transformers(row, tmp_path):
    directory = zoo.make(row, tmp_path / "checkpoint")
    if row.becomes == zoo.REFUSED:
        with pytest.raises(ServingError):
            fp32_file(load(directory), tmp_path)
        return
    checkpoint = load(directory)
    graph, file = fp32_file(checkpoint, tmp_path)
    assert zoo.outcome(graph) == row.becomes
    model = torch.jit.load(str(file))
    oracle = HuggingFace(directory, 128)
    expected = torch.cat([oracle.probabilities([text]) for text in TEXTS])  # some answer no batch without a padding id
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for texts in (TEXTS, TEXTS[::-1], TEXTS[:1]):
            class_ids, probabilities = model(*checkpoint.tokenize(texts))
            reference = expected[[TEXTS.index(text) for text in texts]]
            assert (probabilities - reference).abs().max() < MAX_LOGIT_ERROR
            assert torch.equal(class_ids[:, 0], probabilities.argmax(1))


def test_the_page_says_what_the_zoo_shows():
    page = zoo.PAGE.read_text(encoding="utf-8")
    assert zoo.written(page) == page, "run `python -m tests.support.zoo`"
    assert zoo.table() in page
