"""DeBERTa-v2 and v3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from build_scripts.convert.families.common import norm_of, token_types_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import Convolution, Distances, DistanceTables, EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    config, base = model.config, model.deberta
    encoder, embeddings = base.encoder, base.embeddings
    attention = encoder.layer[0].attention.self if len(encoder.layer) else None
    if (
        attention is None
        or not plain_name(config.hidden_act)
        or not plain_name(config.pooler_hidden_act)
        or (encoder.conv is not None and not _simple(encoder, config))
    ):
        return None
    terms = attention.pos_att_type if encoder.relative_attention else []
    if encoder.relative_attention and not terms:
        return None
    # The scale counts pos_att_type even without relative attention.
    scale = (attention.attention_head_size * (1 + len({"c2p", "p2c"}.intersection(attention.pos_att_type)))) ** -0.5
    types = token_types_of(embeddings.token_type_embeddings, token_types)
    position_embeddings = types
    if embeddings.position_biased_input:
        position_embeddings = embeddings.position_embeddings.weight[None]
        if types is not None:
            position_embeddings = position_embeddings + types
    return EncoderParts(
        word_embeddings=embeddings.word_embeddings.weight,
        position_embeddings=position_embeddings,
        embedding_norm=norm_of(embeddings.LayerNorm),
        embedding_projection=embeddings.embed_proj,
        layers=[
            EncoderLayer(
                query=layer.attention.self.query_proj,
                key=layer.attention.self.key_proj,
                value=layer.attention.self.value_proj,
                attention_output=layer.attention.output.dense,
                attention_norm=norm_of(layer.attention.output.LayerNorm),
                intermediate=layer.intermediate.dense,
                output=layer.output.dense,
                output_norm=norm_of(layer.output.LayerNorm),
                scale=scale,
                distances=_tables(layer.attention.self, encoder.get_rel_embedding(), scale) if terms else None,
            )
            for layer in encoder.layer
        ],
        heads=config.num_attention_heads,
        key_value_heads=config.num_attention_heads,
        activation=plain_name(config.hidden_act),
        distances=Distances(_rows(attention, config.max_position_embeddings)) if terms else None,
        convolution=None if encoder.conv is None else _convolution(encoder.conv),
        head_dense=model.pooler.dense,
        head_activation=plain_name(config.pooler_hidden_act),
        classifier=model.classifier,
    )


def _tables(attention: Any, embeddings: torch.Tensor, scale: float) -> DistanceTables:
    """Keys and queries of every relative position, by head."""
    embeddings = embeddings[: 2 * attention.pos_ebd_size]
    shared = attention.share_att_key
    keys = queries = None
    with torch.no_grad():
        if "c2p" in attention.pos_att_type:
            keys = (attention.key_proj if shared else attention.pos_key_proj)(embeddings)
        if "p2c" in attention.pos_att_type:
            queries = scale * (attention.query_proj if shared else attention.pos_query_proj)(embeddings)
    heads = attention.num_attention_heads
    keys, queries = (
        None if table is None else table.view(-1, heads, attention.attention_head_size).transpose(0, 1).contiguous()
        for table in (keys, queries)
    )
    return DistanceTables(keys, queries)


def _rows(attention: Any, positions: int) -> torch.Tensor:
    """The table row of each distance, see Distances: exact up to half the buckets, then by logarithm."""
    distance = torch.arange(positions - 1, -positions, -1)
    span, buckets = attention.pos_ebd_size, attention.position_buckets
    if buckets > 0:
        middle = buckets // 2
        far = distance.abs().clamp(min=middle - 1) / middle
        # In fp32 as transformers computes it: the last bit decides between two rows.
        most = torch.tensor((attention.max_relative_positions - 1) / middle)
        far = torch.log(far) / torch.log(most) * (middle - 1)
        far = (torch.ceil(far) + middle) * distance.sign()
        distance = torch.where(distance.abs() <= middle, distance, far.long())
    return (distance + span).clamp(0, 2 * span - 1)


def _simple(encoder: Any, config: Any) -> bool:
    """Whether the graph has this convolution. It needs a second layer, as the last one drops tokens."""
    known = encoder.conv.conv.kernel_size == (3,) and encoder.conv.conv.groups == 1
    return known and bool(plain_name(encoder.conv.conv_act)) and config.num_hidden_layers > 1


def _convolution(convolution: Any) -> Convolution:
    norm, activation = norm_of(convolution.LayerNorm), plain_name(convolution.conv_act)
    return Convolution(convolution.conv.weight, convolution.conv.bias, activation, norm)
