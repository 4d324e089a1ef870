"""Keys of config.json that change answers in a checkpoint's own code and that this transformers ignores.

A key whose meaning is certain is mapped. Any other value than the one that transformers computes is refused by name:
parity with transformers cannot find it, because both sides ignore the key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from build_scripts.core.errors import ServingError

ABSOLUTE = {"position_embedding_type": (None, "absolute")}
BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra", "ernie", "layoutlm", "albert")
# By model type: ignored keys, and the values that transformers' own forward has.
IGNORED: dict[str, dict[str, tuple[Any, ...]]] = {
    **dict.fromkeys((*BERT_LIKE, "megatron-bert", "rembert"), ABSOLUTE),
    # The hub's code of nomic-ai/nomic-bert.
    "nomic_bert": {
        "activation_function": ("swiglu",),
        "causal": (False,),
        "mlp_fc1_bias": (False,),
        "mlp_fc2_bias": (False,),
        "moe_every_n_layers": (None, 0),
        "parallel_block": (False,),
        "prenorm": (False,),
        "qkv_proj_bias": (False,),
        "rotary_emb_fraction": (1, 1.0),
        "rotary_emb_interleaved": (False,),
        "rotary_emb_scale_base": (None,),
        "use_rms_norm": (None, False),
    },
    # The hub's code of Alibaba-NLP/new-impl.
    "gte": {
        "layer_norm_type": ("layer_norm",),
        "logn_attention_scale": (False,),
        "position_embedding_type": ("rope",),
    },
    # The hub's code of jinaai/xlm-roberta-flash-implementation.
    "jina_embeddings_v3": {"lora_adaptations": (None, []), "position_embedding_type": ("rotary",)},
    "gemma": {"hidden_activation": (None, "gelu_pytorch_tanh")},
}
# Another name of a setting: ignored, so it must agree with the setting that transformers reads.
ALIASES: dict[str, dict[str, str]] = {
    "nomic_bert": {
        "layer_norm_epsilon": "layer_norm_eps",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_layer": "num_hidden_layers",
        "rotary_emb_base": "rope_theta",
    },
    "jina_embeddings_v3": {"rotary_emb_base": "rope_theta"},
}
EUROBERT_POOLINGS = ("bos", "mean", "late")


def settle(config: PretrainedConfig, path: Path) -> None:
    """Map or refuse the keys that transformers ignores. path: of the checkpoint. Raises ServingError."""
    given, kind = json.loads((path / "config.json").read_text(encoding="utf-8")), config.model_type
    if kind == "eurobert" and "clf_pooling" in given:
        _map_eurobert_pooling(config, given, path)
    for key, values in IGNORED.get(kind, {}).items():
        if key in given and given[key] not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise ServingError(_ignored(path, kind, key, given[key], f"computes {wanted}"))
    for key, setting in ALIASES.get(kind, {}).items():
        used = config.rope_parameters["rope_theta"] if setting == "rope_theta" else getattr(config, setting)
        if given.get(key) not in (None, used):
            raise ServingError(_ignored(path, kind, key, given[key], f"uses {setting}={used!r}"))
    for rope in _ropes(config):
        if rope.get("rope_type", "default") not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ServingError(
                f"{path}/config.json asks for rotary positions of type {rope['rope_type']!r}, which this transformers "
                f"does not have; expected {', '.join(('default', *sorted(ROPE_INIT_FUNCTIONS)))}"
            )


def _map_eurobert_pooling(config: PretrainedConfig, given: dict[str, Any], path: Path) -> None:
    """The hub's code reads clf_pooling, transformers classifier_pooling, with the same values and meanings."""
    pooling = given["clf_pooling"]
    if pooling not in EUROBERT_POOLINGS:
        raise ServingError(
            f"{path}/config.json has clf_pooling={pooling!r}; expected one of {', '.join(EUROBERT_POOLINGS)}"
        )
    if given.get("classifier_pooling", pooling) != pooling:
        raise ServingError(
            f"{path}/config.json has clf_pooling={pooling!r} and classifier_pooling={given['classifier_pooling']!r}; "
            "keep the one that the checkpoint was trained with"
        )
    config.classifier_pooling = pooling


def _ropes(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary settings, of every kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or [rope]


def _ignored(path: Path, kind: str, key: str, value: object, instead: str) -> str:
    return (
        f"{path}/config.json has {key}={value!r}, which changes the answers in the checkpoint's own code; this "
        f"transformers ignores it for {kind} and {instead}. Save the checkpoint with an architecture of transformers "
        f"that has it, or remove {key} if it was not in effect"
    )
