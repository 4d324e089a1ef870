"""Every packed family equals transformers at lengths around windows, buckets and blocks."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from build_scripts.convert.export import DTYPES
from build_scripts.convert.families import bert, encoder_parts
from build_scripts.graph.classifier import TextClassifier
from build_scripts.graph.packed_encoder import PackedEncoder
from tests.support import checkpoints, zoo
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = pytest.mark.usefixtures("one_thread")

BERT_LIKE = {*bert.LAYOUT, "distilbert"}
ROWS = [row for row in zoo.ROWS if row.becomes == zoo.PACKED and row.family not in BERT_LIKE and not row.of_pieces]
LONGEST = 128
# Around the zoo's windows of 8 and blocks of 16 and 32, buckets with and without padding, and a lone text.
LENGTHS = [
    [1], [9], [LONGEST], [5, 3, 1], [40] * 6, [90, 64, 63, 62],
    [128, 127, 60, 34, 33, 32, 31, 18, 17, 16, 10, 9, 8, 2],
]  # fmt: skip


def quick(row: zoo.Row) -> bool:
    return row.name in ("modernbert classifier_pooling=cls", "qwen3 use_sliding_window=True", "mpnet", "gte")


@pytest.fixture(
    scope="module",
    params=[pytest.param(row, marks=() if quick(row) else pytest.mark.slow) for row in ROWS],
    ids=lambda row: row.name,
)
def family(request):
    """The eager model of a zoo row, and its packed graph's parts."""
    return Family(request.param)


class Family:
    def __init__(self, row: zoo.Row, **changes: object):
        tokenizer = zoo.make_tokenizer(row.tokenizer)
        config = zoo.small_config(row.family, tokenizer, {**row.config, "num_labels": 6, **changes})
        self.model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        checkpoints.draw_weights(self.model, seed=1)
        self.types = 2 if getattr(config, "type_vocab_size", 0) == 2 and row.family != "mpnet" else 1
        self.words, self.pad_id = config.vocab_size, config.pad_token_id
        self.parts = encoder_parts(self.model, self.types)

    def graph(self, precision: str, longest: int = LONGEST) -> torch.jit.ScriptModule:
        """As it is loaded from a file."""
        with torch.no_grad():
            classifier = TextClassifier(
                PackedEncoder(self.parts, DTYPES[precision]),
                vocab_size=self.words,
                max_length=longest,
                activation="softmax",
            )
        written = io.BytesIO()
        torch.jit.save(torch.jit.script(classifier.eval()), written)
        written.seek(0)
        return torch.jit.load(written).eval().logits

    def batch(self, lengths: list[int], gaps: bool = False) -> tuple[Tensor, Tensor]:
        """Random ids without the padding id, and a mask of 1 and, with token types, 2."""
        generator = torch.Generator().manual_seed(len(lengths))
        own = torch.tensor(lengths)[:, None]
        column = torch.arange(max(lengths))
        mask = (column < own).long()
        if self.types == 2:
            mask += (column > own // 2) & (column < own)
        if gaps:
            mask[torch.rand(mask.shape, generator=generator) < 0.3] = 0
            mask[:, 0] = 1
        ids = torch.randint(3, self.words, mask.shape, generator=generator)
        return torch.where(mask > 0, ids, self.pad_id), mask

    def eager(self, ids: Tensor, mask: Tensor) -> Tensor:
        types = {"token_type_ids": (mask == 2).long()} if self.types == 2 else {}
        with torch.inference_mode():
            return self.model(input_ids=ids, attention_mask=(mask > 0).long(), **types).logits


def test_fp32_equals_transformers_at_every_length(family):
    graph = family.graph("fp32")
    for lengths in LENGTHS:
        ids, mask = family.batch(lengths)
        expected = family.eager(ids, mask)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            assert (graph(ids, mask) - expected).abs().max() < MAX_LOGIT_ERROR, lengths


def test_gaps_in_the_mask_equal_transformers(family):
    if family.parts.causal:
        pytest.skip("transformers looks for the last token by padding ids, not by the mask")
    graph = family.graph("fp32")
    for lengths in LENGTHS:
        ids, mask = family.batch(lengths, gaps=True)
        expected = family.eager(ids, mask)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            assert (graph(ids, mask) - expected).abs().max() < MAX_LOGIT_ERROR, lengths


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_keeps_class_ids_outside_near_ties(family, precision):
    with torch.no_grad():  # smaller weights: rounding grows with every layer of random ones
        for name, parameter in family.model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(0.4)
    try:
        family.parts = encoder_parts(family.model, family.types)
        graph, exact = family.graph(precision), family.graph("fp32")
        for lengths in LENGTHS:
            ids, mask = family.batch(lengths)
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                expected, found = exact(ids, mask).softmax(1), graph(ids, mask).softmax(1)
            best = expected.topk(2).values
            near_tie = best[:, 0] - best[:, 1] < 0.02
            assert (found - expected).abs().max() < 0.02
            assert ((found.argmax(1) == expected.argmax(1)) | near_tie).all()
            assert not torch.equal(found, expected), "weights of that precision must have been used"
    finally:
        with torch.no_grad():
            for name, parameter in family.model.named_parameters():
                if parameter.dim() == 2 and "embed" not in name:
                    parameter.div_(0.4)
        family.parts = encoder_parts(family.model, family.types)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modernbert classifier_pooling=mean", "deberta-v2", "mpnet", "qwen3"])
def test_texts_longer_than_a_block_equal_transformers(name):
    row = next(row for row in ROWS if row.name.startswith(name))
    family = Family(row, max_position_embeddings=702)
    graph = family.graph("fp32", longest=700)
    for lengths, gaps in [([700], False), ([513, 512, 30], False), ([700, 650], not family.parts.causal)]:
        ids, mask = family.batch(lengths, gaps)
        expected = family.eager(ids, mask)
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            assert (graph(ids, mask) - expected).abs().max() < MAX_LOGIT_ERROR, lengths
