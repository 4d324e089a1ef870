"""A key of config.json that changes answers and that transformers ignores is mapped or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from build_scripts.convert.checkpoint import load
from build_scripts.convert.weights import load_config, load_model
from build_scripts.core.errors import ServingError
from tests.support import zoo

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(family: str, directory: Path, **changes: object) -> Path:
    """The first zoo row of a family with other keys in config.json; None removes one."""
    row = next(row for row in zoo.ROWS if row.family == family)
    zoo.make(row, directory)
    file = directory / "config.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")
    return directory


@pytest.mark.parametrize("pooling", ["bos", "mean", "late"])
def test_maps_the_pooling_of_eurobert(tmp_path, pooling):
    directory = checkpoint("eurobert", tmp_path, clf_pooling=pooling, classifier_pooling=None)
    assert load(directory).model.classifier_pooling == pooling


def test_refuses_two_poolings_of_eurobert(tmp_path):
    directory = checkpoint("eurobert", tmp_path, clf_pooling="late", classifier_pooling="mean")
    with pytest.raises(ServingError, match=r"clf_pooling='late' and classifier_pooling='mean'"):
        load_config(directory)


def test_refuses_an_unknown_pooling_of_eurobert(tmp_path):
    with pytest.raises(ServingError, match=r"clf_pooling='max'; expected one of bos, mean, late"):
        load_config(checkpoint("eurobert", tmp_path, clf_pooling="max"))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "position_embedding_type", "relative_key"),
        ("xlm-roberta", "position_embedding_type", "rotary"),
        ("nomic_bert", "activation_function", "gelu"),
        ("nomic_bert", "causal", True),
        ("nomic_bert", "layer_norm_epsilon", 1e-3),
        ("nomic_bert", "mlp_fc1_bias", True),
        ("nomic_bert", "mlp_fc2_bias", True),
        ("nomic_bert", "moe_every_n_layers", 2),
        ("nomic_bert", "n_embd", 768),
        ("nomic_bert", "n_head", 12),
        ("nomic_bert", "n_inner", 3072),
        ("nomic_bert", "n_layer", 12),
        ("nomic_bert", "parallel_block", True),
        ("nomic_bert", "prenorm", True),
        ("nomic_bert", "qkv_proj_bias", True),
        ("nomic_bert", "rotary_emb_base", 10_000),
        ("nomic_bert", "rotary_emb_fraction", 0.5),
        ("nomic_bert", "rotary_emb_interleaved", True),
        ("nomic_bert", "rotary_emb_scale_base", 512),
        ("nomic_bert", "use_rms_norm", True),
        ("gte", "layer_norm_type", "rms_norm"),
        ("gte", "logn_attention_scale", True),
        ("gte", "position_embedding_type", "absolute"),
        ("jina_embeddings_v3", "lora_adaptations", ["classification"]),
        ("jina_embeddings_v3", "position_embedding_type", "absolute"),
        ("jina_embeddings_v3", "rotary_emb_base", 10_000.0),
        ("gemma", "hidden_activation", "relu"),
    ],
)
def test_refuses_an_ignored_key_by_name(tmp_path, family, key, value):
    with pytest.raises(ServingError) as refused:
        load_config(checkpoint(family, tmp_path, **{key: value}))
    assert f"config.json has {key}={value!r}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_refuses_rotary_positions_that_transformers_lacks(tmp_path):
    directory = checkpoint("gte", tmp_path, rope_parameters=None, rope_scaling={"type": "ntk", "factor": 8.0})
    with pytest.raises(ServingError, match="rotary positions of type 'ntk'"):
        load_config(directory)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        # mmBERT says sans_pos, and no code of ModernBERT reads it.
        ("modernbert", {"position_embedding_type": "sans_pos"}),
        ("nomic_bert", {"prenorm": False, "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000, "n_head": 4}),
        ("gte", {"position_embedding_type": "rope", "logn_attention_scale": False}),
        ("bert", {"position_embedding_type": "absolute"}),
    ],
)
def test_accepts_keys_that_change_nothing(tmp_path, family, keys):
    row = next(row for row in zoo.ROWS if row.family == family)
    zoo.make(row, tmp_path / "without")
    checkpoint(family, tmp_path / "with", **keys)
    ids = torch.tensor([[5, 6, 7]])
    answers = [load_model(path, load_config(path))(ids).logits for path in (tmp_path / "without", tmp_path / "with")]
    assert torch.equal(*answers)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_reads_the_pooling_of_modernbert(tmp_path, pooling):
    directory = checkpoint("modernbert", tmp_path, classifier_pooling=pooling)
    assert load(directory).model.config.classifier_pooling == pooling
