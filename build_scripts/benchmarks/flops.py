"""Floating-point operations of the packed classifier for one batch, counted from the architecture.

Counted, at two operations a multiply-add: the linear layers for every real token, attention's two products for every
pair of tokens of a text, and in the last layer the first token of each text only. Not counted: padding, embeddings,
LayerNorm, GELU, softmax. So the count is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence

from build_scripts.graph.parts import EncoderLayer, EncoderParts


def classifier_flops(parts: EncoderParts, lengths: Sequence[int]) -> int:
    """Operations for texts of `lengths` tokens each."""
    tokens = sum(lengths)
    projection = parts.embedding_projection
    embedding = 0 if projection is None else linear(projection) * tokens
    layers = sum(full_layer(layer, lengths) for layer in parts.layers[:-1])
    last = first_token_layer(parts.layers[-1], parts.heads, lengths)
    head = (linear(parts.head_dense) + linear(parts.classifier)) * len(lengths)
    return embedding + layers + last + head


def linear(layer) -> int:
    """Operations for one row."""
    return 2 * layer.in_features * layer.out_features


def full_layer(layer: EncoderLayer, lengths: Sequence[int]) -> int:
    """Every token attends to every token of its text: scores and weighted sum, `hidden` wide over all heads."""
    products = (layer.query, layer.key, layer.value, layer.attention_output, layer.intermediate, layer.output)
    attention = sum(2 * 2 * length * length * layer.query.out_features for length in lengths)
    return sum(map(linear, products)) * sum(lengths) + attention


def first_token_layer(layer: EncoderLayer, heads: int, lengths: Sequence[int]) -> int:
    """One query a text. The graph computes no keys and values: each head reads the hidden states."""
    products = (layer.query, layer.key, layer.value, layer.attention_output, layer.intermediate, layer.output)
    attention = 2 * 2 * heads * layer.query.in_features * sum(lengths)
    return sum(map(linear, products)) * len(lengths) + attention
