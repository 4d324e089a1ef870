"""The model that is written to `model.pt`: input_ids and attention_mask in, class id and probabilities or score out.

It wraps the module that computes the logits: the packed graph, or Hugging Face's traced forward. An unknown token id
would fail the whole batch on a CPU, and break the CUDA context on a GPU. The wrapper rejects that row only.
"""

from typing import Final

import torch
from torch import Tensor, nn


class TextClassifier(nn.Module):
    """input_ids, attention_mask: (batch, width) int64 -> class id (batch, 1) int64, probabilities (batch, labels) fp32.

    A mask value of 0 marks padding, 2 a token of a pair's second text, and any other value a token of the first text.
    A checkpoint without token types treats both texts alike. Every row has at least one token, its first.
    With one label, the class id is 0 and the single column holds the score.
    A row with a token id outside 0 … vocab_size - 1, or with a token beyond max_length, gets class id -1, which no text
    can produce, and probabilities of 0. NaN would mark the row too, but JSON has no NaN.
    activation: "softmax", "sigmoid" or "identity".
    """

    vocab_size: Final[int]
    max_length: Final[int]
    activation: Final[str]

    def __init__(self, logits: nn.Module, *, vocab_size: int, max_length: int, activation: str):
        super().__init__()
        self.logits = logits
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.activation = activation

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        if input_ids.size(1) != attention_mask.size(1):  # unequal widths would misalign tokens and mask
            raise ValueError(f"INPUT__0 has {input_ids.size(1)} columns and INPUT__1 {attention_mask.size(1)}")
        safe_ids = input_ids.clamp(0, self.vocab_size - 1)[:, : self.max_length]
        logits = self.logits(safe_ids, attention_mask[:, : self.max_length]).float()
        class_id = logits.argmax(1, keepdim=True)
        probabilities = logits
        if self.activation == "softmax":
            probabilities = logits.softmax(1)
        elif self.activation == "sigmoid":
            probabilities = logits.sigmoid()
        if not torch.equal(safe_ids, input_ids):
            refused = self.outside(input_ids, attention_mask).any(1, keepdim=True)
            class_id = class_id.masked_fill(refused, -1)
            probabilities = probabilities.masked_fill(refused, 0.0)
        return class_id, probabilities

    def outside(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, width) bool: real tokens without an embedding."""
        outside = (input_ids < 0) | (input_ids >= self.vocab_size)
        outside[:, self.max_length :] = True
        counts = attention_mask != 0
        counts[:, 0] = True
        return outside & counts

    @torch.jit.export
    def check_inputs(self, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """One complaint per row, "" for a good row; an empty list if all rows are good."""
        complaints: list[str] = []
        if input_ids.size(1) != attention_mask.size(1) or input_ids.size(1) == 0:
            for _ in range(input_ids.size(0)):
                complaints.append(
                    f"INPUT__0 has {input_ids.size(1)} columns and INPUT__1 {attention_mask.size(1)}; expected the "
                    f"same number, from 1 to {self.max_length}"
                )
            return complaints
        if torch.equal(input_ids.clamp(0, self.vocab_size - 1)[:, : self.max_length], input_ids):
            return complaints
        outside = self.outside(input_ids, attention_mask)
        if not bool(outside.any()):
            return complaints
        for row in range(input_ids.size(0)):
            bad = outside[row].nonzero()
            if bad.size(0) == 0:
                complaints.append("")
            elif int(bad[0]) >= self.max_length:
                complaints.append(
                    f"INPUT__1 counts column {int(bad[0])}; this model reads {self.max_length} columns, 0 to "
                    f"{self.max_length - 1}"
                )
            else:
                complaints.append(
                    f"INPUT__0 has token id {int(input_ids[row, int(bad[0])])} in column {int(bad[0])}; this "
                    f"checkpoint's ids are 0 to {self.vocab_size - 1}"
                )
        return complaints
