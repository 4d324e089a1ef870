"""The weights of the packed graph, by role. `convert.architectures` reads them from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class EncoderLayer:
    """One transformer layer: post-LayerNorm, as in BERT."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm


@dataclass(frozen=True)
class BertParts:
    """Everything the packed graph needs; all tensors fp32.

    position_embeddings: (token types, positions, embedding_size), row i for column i, the token type's embedding and
    constant ones already added.
    skipped_position_id: id of the token that has no position of its own (fairseq numbering), -1 if columns count.
    head_dense, head_activation, classifier: logits = classifier(activation(head_dense(first token))).
    """

    word_embeddings: torch.Tensor
    position_embeddings: torch.Tensor
    skipped_position_id: int
    embedding_norm: nn.LayerNorm
    embedding_projection: nn.Linear | None
    layers: list[EncoderLayer]
    num_attention_heads: int
    activation: str
    head_dense: nn.Linear
    head_activation: str
    classifier: nn.Linear
