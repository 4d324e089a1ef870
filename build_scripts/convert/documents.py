"""Whole documents: how a text of more than max_length tokens is cut into windows, and how their answers are pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from build_scripts.convert.activation import Activation
from build_scripts.core.errors import ServingError
from build_scripts.core.options import LONGEST_MAX_LENGTH


@dataclass(frozen=True)
class Documents:
    """pooling: how the windows' logits are combined; with sigmoids, their probabilities.

    stride: tokens that two windows share. windows: maximum per text; the rest of a longer text is not read. tokens:
    length of the longest text that is read whole.
    """

    pooling: Literal["mean", "max"]
    stride: int
    windows: int
    tokens: int

    def pool(self, logits: torch.Tensor, activation: Activation) -> torch.Tensor:
        """(windows, labels) -> (labels,): logits whose probabilities are the pooled ones."""
        if self.pooling == "max":
            return logits.amax(0)
        if activation == "sigmoid":
            return logits.double().sigmoid().mean(0).logit().float()
        return logits.mean(0)


def documents(pooling: str, stride: int, max_length: int, special: int) -> Documents | None:
    """None without pooling. Raises ServingError if the windows do not fit. special: special tokens of a window."""
    if not pooling:
        return None
    windows = LONGEST_MAX_LENGTH // max_length
    if windows < 2:
        raise ServingError(
            f"DOCUMENTS={pooling}: MAX_LENGTH is {max_length}; expected at most {LONGEST_MAX_LENGTH // 2}, so that two "
            f"windows fit into a row of {LONGEST_MAX_LENGTH} tokens; lower it, or build without DOCUMENTS"
        )
    if not 0 <= stride < max_length - special:
        raise ServingError(
            f"STRIDE={stride}; expected 0 to {max_length - special - 1}, because a window has room for "
            f"{max_length - special} tokens of the text (MAX_LENGTH={max_length} without {special} special tokens)"
        )
    tokens = max_length + (windows - 1) * (max_length - special - stride)
    return Documents("max" if pooling == "max" else "mean", stride, windows, tokens)
