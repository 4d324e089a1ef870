"""RoFormer: BERT's layer with rotary positions of neighbouring pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from build_scripts.convert.families.common import linear, norm_of, token_types_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import EncoderLayer, EncoderParts, Rotary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    config, base = model.config, model.roformer
    table = base.encoder.embed_positions.weight
    size = table.size(1)
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(len(table))[:, None] * frequencies
    usual = (table - torch.cat([angles.sin(), angles.cos()], 1)).abs().max() < 1e-3
    if config.rotary_value or config.is_decoder or not plain_name(config.hidden_act) or not base.encoder.layer:
        return None
    if size % 2 or not usual:
        return None
    heads, head = config.num_attention_heads, model.classifier
    return EncoderParts(
        word_embeddings=base.embeddings.word_embeddings.weight,
        position_embeddings=token_types_of(base.embeddings.token_type_embeddings, token_types),
        embedding_norm=norm_of(base.embeddings.LayerNorm),
        embedding_projection=getattr(base, "embeddings_project", None),
        layers=[
            EncoderLayer(
                query=_halved(layer.attention.self.query, heads),
                key=_halved(layer.attention.self.key, heads),
                value=layer.attention.self.value,
                attention_output=layer.attention.output.dense,
                attention_norm=norm_of(layer.attention.output.LayerNorm),
                intermediate=layer.intermediate.dense,
                output=layer.output.dense,
                output_norm=norm_of(layer.output.LayerNorm),
                scale=size**-0.5,
                rotary=0,
            )
            for layer in base.encoder.layer
        ],
        heads=heads,
        key_value_heads=heads,
        activation=plain_name(config.hidden_act),
        rotary=[Rotary(frequencies)],
        head_dense=head.dense,
        head_activation=plain_name(config.hidden_act),
        classifier=head.out_proj,
    )


def _halved(layer: nn.Linear, heads: int) -> nn.Linear:
    """Reorder each head from neighbouring pairs to two halves. Scores do not depend on the order."""
    order = torch.arange(layer.out_features).view(heads, -1, 2).transpose(1, 2).flatten()
    return linear(layer.weight[order], layer.bias[order])
