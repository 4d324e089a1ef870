"""The description of a packed encoder: its weights by role, and how one family differs from another.

`convert.families` reads it from a checkpoint. All tensors are fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass(frozen=True)
class NormParts:
    """LayerNorm, or RMSNorm if `rms`. weight, bias: (width,); a missing bias is zeros."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    rms: bool = False


@dataclass(frozen=True)
class DistanceTables:
    """Disentangled attention of one layer: what a distance adds to a score. Both (heads, rows, head_size).

    keys: multiplied by the query (c2p). queries: scaled, multiplied by the key (p2c). None: the layer lacks this term.
    """

    keys: torch.Tensor | None
    queries: torch.Tensor | None


@dataclass(frozen=True)
class EncoderLayer:
    """One transformer layer.

    scale: factor of the attention scores. window: largest distance between a query and its keys, 0 for no limit.
    rotary: index into EncoderParts.rotary, or -1. query_norm, key_norm: over each head.
    attention_norm: None if a layer that normalises first gets its input normalised.
    gate: makes the feed-forward output(activation(gate(x)) * intermediate(x)).
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: NormParts | None
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: NormParts
    scale: float
    gate: nn.Linear | None = None
    window: int = 0
    rotary: int = -1
    query_norm: NormParts | None = None
    key_norm: NormParts | None = None
    distances: DistanceTables | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: cos and sin of position * frequencies, times scale. frequencies: (head_size / 2,)."""

    frequencies: torch.Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class Distances:
    """Relative positions, shared by all layers.

    rows: (2 * positions - 1,) int64, the table row of each distance query - key, from positions - 1 down.
    bias: (rows, heads), added to the scores; None if the layers have tables of their own (DistanceTables).
    """

    rows: torch.Tensor
    bias: torch.Tensor | None = None


@dataclass(frozen=True)
class Convolution:
    """DeBERTa-v2's convolution beside the first layer: norm(layer(x) + activation(convolution of x))."""

    weight: torch.Tensor
    bias: torch.Tensor
    activation: str
    norm: NormParts


@dataclass(frozen=True)
class EncoderParts:
    """Everything the packed graph needs.

    position_embeddings: (token types, positions, embedding_size), row i for column i, with the token type's embedding
    and constant ones added. Without learned positions there is one row per token type; without token types none.
    skipped_position_id: id of the token without a position (fairseq numbering), -1 if columns count.
    layers: a shared layer appears several times in a row.
    norm_first: each half of a layer normalises its input; otherwise the sum of its input and output.
    pooling: "first", "last" or "mean" token of a text. pad_id: id that "last" skips at the end of a text, or -1.
    token_dense: applied to every token before pooling, with head_activation.
    head: logits = classifier(head_norm(activation(head_dense(pooled)))); all but the classifier are optional.
    """

    word_embeddings: torch.Tensor
    position_embeddings: torch.Tensor | None
    layers: list[EncoderLayer]
    heads: int
    key_value_heads: int
    activation: str
    classifier: nn.Linear
    embedding_norm: NormParts | None = None
    embedding_projection: nn.Linear | None = None
    skipped_position_id: int = -1
    norm_first: bool = False
    causal: bool = False
    rotary: list[Rotary] = field(default_factory=list)
    distances: Distances | None = None
    convolution: Convolution | None = None
    final_norm: NormParts | None = None
    pooling: str = "first"
    pad_id: int = -1
    token_dense: nn.Linear | None = None
    head_dense: nn.Linear | None = None
    head_activation: str = "none"
    head_norm: NormParts | None = None
