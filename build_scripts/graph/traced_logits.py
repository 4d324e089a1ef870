"""Run a traced Hugging Face forward on the columns that a batch uses. `convert.traced` makes the trace."""

from typing import Final

import torch
from torch import Tensor, nn


class TracedLogits(nn.Module):
    """(batch, width) ids and mask -> logits, on the columns up to the longest text of the batch.

    required_id: token that the model needs in every text, or -1. It replaces the last token of a row that lacks it.
    token_types: number of token types. Mask values 1, 2 … token_types mean type 0, 1 …; other values but 0 mean type 0.
    """

    token_types: Final[int]
    minimum: Final[int]
    alone: Final[bool]
    pad_id: Final[int]
    required_id: Final[int]

    def __init__(
        self, traced: nn.Module, *, token_types: int, minimum: int, alone: bool, pad_id: int, required_id: int
    ):
        super().__init__()
        self.traced = traced
        self.token_types = token_types
        self.minimum = minimum
        self.alone = alone
        self.pad_id = pad_id
        self.required_id = required_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        known = (attention_mask >= 1) & (attention_mask <= self.token_types)
        token_types = (attention_mask - 1).masked_fill(known.logical_not(), 0)
        attention_mask = (attention_mask != 0).to(torch.int64)
        attention_mask[:, 0] = 1
        column = torch.arange(input_ids.size(1), device=input_ids.device)
        last = (column * attention_mask).amax(1, keepdim=True)
        # Some models find the end of a text by the padding id, so unused columns must hold it.
        input_ids = input_ids.masked_fill(column > last, self.pad_id)
        if self.required_id >= 0:
            lacking = (input_ids == self.required_id).any(1, keepdim=True).logical_not()
            input_ids = input_ids.masked_fill(lacking & (column == last), self.required_id)
        if not self.alone:
            return self.run(input_ids, attention_mask, token_types)
        rows: list[Tensor] = []
        for row in range(input_ids.size(0)):
            tensors = input_ids[row : row + 1], attention_mask[row : row + 1], token_types[row : row + 1]
            rows.append(self.run(tensors[0], tensors[1], tensors[2]))
        return torch.cat(rows)

    def run(self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor) -> Tensor:
        """Logits of padded rows, cut to the longest row."""
        longest = int(attention_mask.amax(0).nonzero().amax()) + 1
        width = max(longest, self.minimum)
        missing = width - input_ids.size(1)
        if missing > 0:
            input_ids = nn.functional.pad(input_ids, [0, missing], value=float(self.pad_id))
            attention_mask = nn.functional.pad(attention_mask, [0, missing])
            token_types = nn.functional.pad(token_types, [0, missing])
        return self.traced(input_ids[:, :width], attention_mask[:, :width], token_types[:, :width])
