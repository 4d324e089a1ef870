"""Floating-point operations of the packed classifier for one batch, counted from the architecture.

Counted, at two operations a multiply-add: the linear layers for every real token, attention's two products for every
pair of tokens of a text, and in the last layer the first token of each text only. Not counted: padding, embeddings,
LayerNorm, GELU, softmax. So the count is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from build_scripts.graph.packed_encoder import reads_first_tokens_only
from build_scripts.graph.parts import EncoderLayer, EncoderParts


def classifier_flops(parts: EncoderParts, lengths: Sequence[int]) -> int:
    """Operations for texts of `lengths` tokens each."""
    tokens = sum(lengths)
    projection = parts.embedding_projection
    embedding = 0 if projection is None else linear(projection) * tokens
    one_token = reads_first_tokens_only(parts)
    layers = sum(full_layer(layer, lengths) for layer in (parts.layers[:-1] if one_token else parts.layers))
    last = first_token_layer(parts.layers[-1], parts.heads, lengths) if one_token else 0
    every_token = 0 if parts.token_dense is None else linear(parts.token_dense) * tokens
    head = (0 if parts.head_dense is None else linear(parts.head_dense)) + linear(parts.classifier)
    return embedding + layers + last + every_token + head * len(lengths)


def linear(layer) -> int:
    """Operations for one row."""
    return 2 * layer.in_features * layer.out_features


def full_layer(layer: EncoderLayer, lengths: Sequence[int]) -> int:
    """Every token attends to every token within the window: scores and weighted sum, over all heads."""
    seen = 2 * layer.window + 1 if layer.window else max(lengths)
    attention = sum(2 * 2 * length * min(length, seen) * layer.query.out_features for length in lengths)
    return sum(map(linear, products(layer))) * sum(lengths) + attention


def products(layer: EncoderLayer) -> list:
    """The linear layers."""
    gate = [] if layer.gate is None else [layer.gate]
    return [layer.query, layer.key, layer.value, layer.attention_output, *gate, layer.intermediate, layer.output]


def first_token_layer(layer: EncoderLayer, heads: int, lengths: Sequence[int]) -> int:
    """One query a text. The graph computes no keys and values: each head reads the hidden states."""
    attention = 2 * 2 * heads * layer.query.in_features * sum(lengths)
    return sum(map(linear, products(layer))) * len(lengths) + attention
