"""ALBERT: BERT's layers, of which each group shares one set of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from build_scripts.convert.families.common import norm_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    config, base = model.config, model.albert
    groups = base.encoder.albert_layer_groups
    if not plain_name(config.hidden_act) or config.inner_group_num != 1 or config.num_hidden_layers < 1:
        return None
    described = [
        EncoderLayer(
            query=layer.attention.query,
            key=layer.attention.key,
            value=layer.attention.value,
            attention_output=layer.attention.dense,
            attention_norm=norm_of(layer.attention.LayerNorm),
            intermediate=layer.ffn,
            output=layer.ffn_output,
            output_norm=norm_of(layer.full_layer_layer_norm),
            scale=layer.attention.scaling,
        )
        for group in groups
        for layer in group.albert_layers
    ]
    depth = config.num_hidden_layers
    embeddings = base.embeddings
    constant = embeddings.token_type_embeddings.weight[: min(token_types, 2), None]
    return EncoderParts(
        word_embeddings=embeddings.word_embeddings.weight,
        position_embeddings=embeddings.position_embeddings.weight + constant,
        embedding_norm=norm_of(embeddings.LayerNorm),
        embedding_projection=base.encoder.embedding_hidden_mapping_in,
        layers=[described[int(turn / (depth / config.num_hidden_groups))] for turn in range(depth)],
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        activation=plain_name(config.hidden_act),
        head_dense=base.pooler,
        head_activation="tanh",
        classifier=model.classifier,
    )
