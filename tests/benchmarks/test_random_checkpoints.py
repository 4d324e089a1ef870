"""Checkpoints of random weights: the shapes are the published ones, and a checkpoint is accepted like any other."""

from __future__ import annotations

import pytest
import torch
import transformers

from build_scripts.benchmarks import random_checkpoints
from build_scripts.benchmarks.corpus import corpus
from build_scripts.convert.checkpoint import load

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("modernbert-base", ("modernbert", 22, 768, 12, 50368, 8192)),
        ("deberta-v3-base", ("deberta-v2", 12, 768, 12, 128100, 512)),
        ("bert-base", ("bert", 12, 768, 12, 30522, 512)),
    ],
)
def test_shapes_are_those_of_the_published_models(shape, expected):
    config = random_checkpoints.SHAPES[shape]()
    found = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.vocab_size)
    assert (config.model_type, *found, config.max_position_embeddings) == expected


@pytest.mark.slow
@pytest.mark.parametrize("shape", random_checkpoints.SHAPES)
def test_checkpoint_is_accepted_and_its_tokenizer_splits_words(shape, monkeypatch, tmp_path):
    base = random_checkpoints.SHAPES[shape]().to_dict()
    base.pop("layer_types", None)  # one a layer
    base.pop("pooler_hidden_size", None)
    config = transformers.AutoConfig.for_model(**{**base, **TINY, "vocab_size": 6000})
    monkeypatch.setitem(random_checkpoints.SHAPES, shape, lambda: config)
    random_checkpoints.make(shape, tmp_path)
    checkpoint = load(tmp_path, 64)
    assert len(checkpoint.labels) == random_checkpoints.LABELS
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 6000
    for text in [*corpus()[:20], "naïve café 中文"]:
        ids = tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[1:-1]) == text
        assert max(ids) < config.vocab_size
    with torch.inference_mode():
        logits = checkpoint.model(**tokenizer(corpus()[0], return_tensors="pt")).logits[0]
    first, second = logits.topk(2).values.tolist()
    assert first - second > 1e-3
