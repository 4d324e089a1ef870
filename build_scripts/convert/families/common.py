"""What several families share: norms, fused layers, rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from build_scripts.graph.parts import NormParts, Rotary

# Rotary positions whose frequencies do not depend on the length of a text.
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def norm_of(norm: Any) -> NormParts:
    """The parts of a LayerNorm or RMSNorm."""
    rms = not isinstance(norm, nn.LayerNorm)
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    bias = getattr(norm, "bias", None)
    return NormParts(norm.weight, torch.zeros_like(norm.weight) if bias is None else bias, eps, rms)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A layer of given weights, such as a part of a fused one."""
    layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), False)
    return layer


def chunks(fused: nn.Linear, number: int) -> list[nn.Linear]:
    """The layers that one fused layer computes, in its order."""
    biases = [None] * number if fused.bias is None else fused.bias.chunk(number)
    return [linear(weight, bias) for weight, bias in zip(fused.weight.chunk(number), biases)]


def rotary_of(embedding: Any, kinds: Sequence[str] = ("",)) -> list[Rotary] | None:
    """Rotary positions, one for each kind of layer; None if they depend on the length of a text."""
    found = []
    for kind in kinds:
        prefix = f"{kind}_" if kind else ""
        rope_type = embedding.rope_type[kind] if kind else embedding.rope_type
        if rope_type not in STATIC_ROPE:
            return None
        found.append(Rotary(getattr(embedding, f"{prefix}inv_freq"), getattr(embedding, f"{prefix}attention_scaling")))
    return found


def token_types_of(embedding: nn.Embedding | None, token_types: int) -> torch.Tensor | None:
    """Position embeddings of a model that has token types only: (token types, 1, size)."""
    return None if embedding is None else embedding.weight[: max(1, min(token_types, 2)), None]
