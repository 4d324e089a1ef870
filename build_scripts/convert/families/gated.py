"""Families whose layers are named q_proj … down_proj: EuroBERT, UltraBERT, GTE, Nomic, Jina v3, and decoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from build_scripts.convert.families.common import norm_of, rotary_of, token_types_of
from build_scripts.graph.activations import plain_name
from build_scripts.graph.parts import EncoderLayer, EncoderParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLING = {"bos": "first", "cls": "first", "mean": "mean", "late": "mean"}


def eurobert_parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    pooling = model.config.classifier_pooling
    if pooling not in POOLING:
        return None
    late = pooling == "late"
    return _parts(
        model,
        model.model,
        norm_first=True,
        pooling=POOLING[pooling],
        token_dense=model.dense if late else None,
        head_dense=None if late else model.dense,
        head_activation="gelu",
        classifier=model.classifier,
    )


def ultrabert_parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    kinds = model.config.layer_types
    windows = [model.config.sliding_window if kind == "sliding_attention" else 0 for kind in kinds]
    pooling = POOLING[model.config.classifier_pooling]
    return _parts(
        model, model.model, norm_first=True, pooling=pooling, classifier=model.classifier, kinds=kinds, windows=windows
    )


def gte_parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    """GTE and Nomic: BERT's layer with rotary positions and a gate."""
    base = model.base_model
    return _parts(
        model,
        base,
        token_types=token_types,
        head_dense=base.pooler.dense,
        head_activation="tanh",
        classifier=model.classifier,
    )


def jina_parts(model: PreTrainedModel, token_types: int) -> EncoderParts | None:
    head = model.classifier
    return _parts(
        model,
        model.roberta,
        token_types=token_types,
        head_dense=head.dense,
        head_activation="tanh",
        classifier=head.out_proj,
    )


def decoder_parts(model: PreTrainedModel, _token_types: int) -> EncoderParts | None:
    """Llama, Qwen2, Qwen3 and Gemma with a classification head on the last token."""
    config = model.config
    if getattr(config, "use_bidirectional_attention", None):
        return None
    kinds = getattr(config, "layer_types", None) or []
    window = getattr(config, "sliding_window", None) or 0
    windows = [max(0, window - 1) if kind == "sliding_attention" else 0 for kind in kinds]
    pad = config.pad_token_id
    parts = _parts(
        model,
        model.model,
        norm_first=True,
        causal=True,
        pooling="last",
        pad_id=-1 if pad is None else pad,
        classifier=model.score,
        windows=windows or None,
    )
    return parts if parts is None or config.model_type != "gemma" else _gemma(parts)


def _parts(
    model: PreTrainedModel,
    base: Any,
    *,
    token_types: int = 1,
    norm_first: bool = False,
    kinds: Sequence[str] | None = None,
    windows: Sequence[int] | None = None,
    **rest: Any,
) -> EncoderParts | None:
    """kinds: of layers that have rotary positions of their own. rest: fields of EncoderParts."""
    config = model.config
    used = sorted(set(kinds or [""]))
    rotary, activation = rotary_of(base.rotary_emb, used), plain_name(config.hidden_act)
    if rotary is None or not activation or not len(base.layers):
        return None
    embeddings = getattr(base, "embeddings", None)
    words = base.embed_tokens if embeddings is None else embeddings.word_embeddings
    layers = [
        replace(
            _layer(layer, norm_first),
            window=windows[index] if windows else 0,
            rotary=used.index(kinds[index]) if kinds else 0,
        )
        for index, layer in enumerate(base.layers[: config.num_hidden_layers])
    ]
    if 2 * rotary[0].frequencies.numel() != layers[0].query.out_features // config.num_attention_heads:
        return None  # part of each head is rotated only
    return EncoderParts(
        word_embeddings=words.weight,
        position_embeddings=(
            None if embeddings is None else token_types_of(embeddings.token_type_embeddings, token_types)
        ),
        embedding_norm=None if embeddings is None else norm_of(embeddings.LayerNorm),
        layers=layers,
        heads=config.num_attention_heads,
        key_value_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        activation=activation,
        norm_first=norm_first,
        rotary=rotary,
        final_norm=norm_of(base.norm) if norm_first else None,
        **rest,
    )


def _layer(layer: Any, norm_first: bool) -> EncoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    gated = hasattr(mlp, "gate_proj")
    first, second = (
        (layer.input_layernorm, layer.post_attention_layernorm)
        if norm_first
        else (layer.post_attention_layernorm, layer.post_mlp_layernorm)
    )
    scale, query_norm = attention.scaling, None
    if hasattr(attention, "q_norm"):  # the scale would be lost in the norm, so it moves behind it
        query_norm = norm_of(attention.q_norm)
        query_norm, scale = replace(query_norm, weight=query_norm.weight * scale), 1.0
    return EncoderLayer(
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        attention_output=attention.o_proj,
        attention_norm=norm_of(first),
        gate=mlp.gate_proj if gated else None,
        intermediate=mlp.up_proj if gated else mlp.fc1,
        output=mlp.down_proj if gated else mlp.fc2,
        output_norm=norm_of(second),
        scale=scale,
        query_norm=query_norm,
        key_norm=norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
    )


def _gemma(parts: EncoderParts) -> EncoderParts:
    """Gemma's norms multiply by 1 + weight, and its embeddings are scaled."""

    def shifted(norm: Any) -> Any:
        return replace(norm, weight=norm.weight + 1)

    layers = [
        replace(layer, attention_norm=shifted(layer.attention_norm), output_norm=shifted(layer.output_norm))
        for layer in parts.layers
    ]
    scale = torch.tensor(parts.word_embeddings.size(1) ** 0.5)
    return replace(
        parts, layers=layers, final_norm=shifted(parts.final_norm), word_embeddings=parts.word_embeddings * scale
    )
