"""MPNet: BERT's layer with a bias by distance, which all layers share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from build_scripts.convert.families.common import norm_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import Distances, EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# MPNet's forward uses these whatever the config says.
BUCKETS, MAX_DISTANCE = 32, 128


def parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    config, base = model.config, model.mpnet
    if not plain_name(config.hidden_act) or not base.encoder.layer or config.relative_attention_num_buckets < BUCKETS:
        return None
    embeddings, head = base.embeddings, model.classifier
    positions = embeddings.position_embeddings.weight
    return EncoderParts(
        word_embeddings=embeddings.word_embeddings.weight,
        position_embeddings=positions[None],
        skipped_position_id=embeddings.padding_idx,
        embedding_norm=norm_of(embeddings.LayerNorm),
        layers=[
            EncoderLayer(
                query=layer.attention.attn.q,
                key=layer.attention.attn.k,
                value=layer.attention.attn.v,
                attention_output=layer.attention.attn.o,
                attention_norm=norm_of(layer.attention.LayerNorm),
                intermediate=layer.intermediate.dense,
                output=layer.output.dense,
                output_norm=norm_of(layer.output.LayerNorm),
                scale=layer.attention.attn.attention_head_size**-0.5,
            )
            for layer in base.encoder.layer
        ],
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        activation=plain_name(config.hidden_act),
        distances=Distances(_rows(len(positions)), base.encoder.relative_attention_bias.weight),
        head_dense=head.dense,
        head_activation="tanh",
        classifier=head.out_proj,
    )


def _rows(positions: int) -> torch.Tensor:
    """The bucket of each distance, see Distances: exact when near, then by logarithm; later keys in the upper half."""
    distance = torch.arange(positions - 1, -positions, -1)
    half = BUCKETS // 2
    exact = half // 2
    far = torch.log(distance.abs().clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    bucket = torch.where(distance.abs() < exact, distance.abs(), (exact + far.long()).clamp(max=half - 1))
    return bucket + half * (distance < 0)
