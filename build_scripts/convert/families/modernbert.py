"""ModernBERT; mmBERT and Ettin are of the same type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from build_scripts.convert.families.common import chunks, norm_of, rotary_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("full_attention", "sliding_attention")


def parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    config, base = model.config, model.model
    used = [kind for kind in KINDS if kind in config.layer_types]
    rotary = rotary_of(base.rotary_emb, used)
    known = plain_name(config.hidden_activation), plain_name(config.classifier_activation)
    if not all(known) or rotary is None or config.sliding_window < 1:
        return None
    layers = []
    for layer, kind in zip(base.layers, config.layer_types):
        query, key, value = chunks(layer.attn.Wqkv, 3)
        gate, intermediate = chunks(layer.mlp.Wi, 2)
        first = isinstance(layer.attn_norm, nn.Identity)
        layers.append(
            EncoderLayer(
                query=query,
                key=key,
                value=value,
                attention_output=layer.attn.Wo,
                attention_norm=None if first else norm_of(layer.attn_norm),
                gate=gate,
                intermediate=intermediate,
                output=layer.mlp.Wo,
                output_norm=norm_of(layer.mlp_norm),
                scale=layer.attn.head_dim**-0.5,
                window=config.sliding_window if kind == "sliding_attention" else 0,
                rotary=used.index(kind),
            )
        )
    return EncoderParts(
        word_embeddings=base.embeddings.tok_embeddings.weight,
        position_embeddings=None,
        embedding_norm=norm_of(base.embeddings.norm),
        layers=layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        activation=plain_name(config.hidden_activation),
        norm_first=True,
        rotary=rotary,
        final_norm=norm_of(base.final_norm),
        pooling="first" if config.classifier_pooling == "cls" else "mean",
        head_dense=model.head.dense,
        head_activation=plain_name(config.classifier_activation),
        head_norm=norm_of(model.head.norm),
        classifier=model.classifier,
    )
