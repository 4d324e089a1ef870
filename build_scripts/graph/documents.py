"""Whole documents: a row of the batch may hold a text in windows, whose answers are pooled to one. Part of the graph.

A batch without windows goes to the classifier of single texts as it is, so short texts get exactly its answers.
"""

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.classifier import TextClassifier


class Windows(NamedTuple):
    """Where windows begin, and which rows are refused. All (batch, width) unless stated.

    begins: whether another window begins in a column; never in column 0. place: column within the window.
    real: whether a column counts. unknown: real token ids without an embedding.
    counts: (batch,) int64, windows per row. longest: (batch,) int64, columns of the longest window.
    refused: (batch, 1).
    """

    begins: Tensor
    place: Tensor
    real: Tensor
    unknown: Tensor
    counts: Tensor
    longest: Tensor
    refused: Tensor


class DocumentClassifier(nn.Module):
    """input_ids, attention_mask: (batch, width) int64 -> class id and probabilities, as TextClassifier.

    A mask value of 2 * n + 1 marks a token of window n, counted from 0; 2 * n + 2 one of a pair's second text. So rows
    of 0, 1 and 2 mean the same as to TextClassifier. Windows lie one after the other.
    pooling: "mean" or "max" of the windows' logits; with sigmoids of their probabilities.
    A row with an unknown id, more than max_windows windows or a window of over max_length columns gets class id -1.
    """

    pooling: Final[str]
    max_windows: Final[int]
    max_length: Final[int]
    vocab_size: Final[int]
    activation: Final[str]

    def __init__(self, texts: TextClassifier, *, pooling: str, max_windows: int):
        super().__init__()
        self.texts = texts
        self.pooling = pooling
        self.max_windows = max_windows
        self.max_length, self.vocab_size, self.activation = texts.max_length, texts.vocab_size, texts.activation

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.holds_windows(input_ids, attention_mask):
            return self.texts(input_ids, attention_mask)
        found = self.windows(input_ids, attention_mask)
        counts = torch.where(found.refused.squeeze(1), 1, found.counts)
        ids, mask = self.split(input_ids, attention_mask, found, counts)
        logits = self.texts.logits(ids, mask).float()
        # In double precision, sigmoids near 1 keep the order of their logits.
        answers = self.pool(logits.double().sigmoid() if self.activation == "sigmoid" else logits, counts)
        class_id = answers.argmax(1, keepdim=True).masked_fill(found.refused, -1)
        probabilities = answers.softmax(1) if self.activation == "softmax" else answers.float()
        return class_id, probabilities.masked_fill(found.refused, 0.0)

    def holds_windows(self, input_ids: Tensor, attention_mask: Tensor) -> bool:
        """Whether a row has a second window. False for inputs that TextClassifier refuses."""
        if input_ids.size(1) != attention_mask.size(1) or input_ids.numel() == 0:
            return False
        return bool(attention_mask.max() > 2)

    def windows(self, input_ids: Tensor, attention_mask: Tensor) -> Windows:
        real = attention_mask != 0
        real[:, 0] = True
        number = torch.div(attention_mask.clamp(min=1) - 1, 2, rounding_mode="floor")
        number = number.masked_fill(real.logical_not(), 0).cummax(1)[0]  # padding continues the window before it
        begins = F.pad(number[:, 1:] > number[:, :-1], [1, 0])
        column = torch.arange(real.size(1), device=real.device)
        place = column - (column * begins).cummax(1)[0]
        unknown = real & ((input_ids < 0) | (input_ids >= self.vocab_size))
        counts = begins.sum(1) + 1
        longest = ((place + 1) * real).amax(1)
        refused = unknown.any(1) | (counts > self.max_windows) | (longest > self.max_length)
        return Windows(begins, place, real, unknown, counts, longest, refused.unsqueeze(1))

    def split(self, input_ids: Tensor, attention_mask: Tensor, found: Windows, counts: Tensor) -> tuple[Tensor, Tensor]:
        """A row per window: ids and mask, (sum of counts, longest window). A refused row becomes one empty window."""
        shown = found.real & found.refused.logical_not()
        longest = int(((found.place + 1) * shown).amax().clamp(min=1))
        window = found.begins.cumsum(1) + (counts.cumsum(0) - counts).unsqueeze(1)
        target = (window * longest + found.place)[shown]
        second = (attention_mask > 0) & (attention_mask % 2 == 0)
        ids = torch.zeros(int(counts.sum()) * longest, dtype=torch.int64, device=input_ids.device)
        mask = torch.zeros_like(ids)
        ids[target] = input_ids[shown]
        mask[target] = second[shown].long() + 1
        return ids.view(-1, longest), mask.view(-1, longest)

    def pool(self, x: Tensor, counts: Tensor) -> Tensor:
        """(windows, labels) -> (batch, labels), the same type. counts: (batch,), windows of each row."""
        rows = torch.arange(counts.size(0), device=x.device).repeat_interleave(counts)
        pooled = torch.zeros(counts.size(0), x.size(1), dtype=x.dtype, device=x.device)
        if self.pooling == "max":
            return pooled.scatter_reduce(0, rows.unsqueeze(1).expand_as(x), x, "amax", include_self=False)
        return pooled.index_add(0, rows, x) / counts.unsqueeze(1)

    @torch.jit.export
    def check_inputs(self, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """One complaint per row, "" for a good row; an empty list if all rows are good."""
        if not self.holds_windows(input_ids, attention_mask):
            return self.texts.check_inputs(input_ids, attention_mask)
        complaints: list[str] = []
        found = self.windows(input_ids, attention_mask)
        if not bool(found.refused.any()):
            return complaints
        for row in range(input_ids.size(0)):
            windows, longest, bad = int(found.counts[row]), int(found.longest[row]), found.unknown[row].nonzero()
            if windows > self.max_windows:
                complaints.append(f"INPUT__1 counts {windows} windows; this model reads {self.max_windows} of a text")
            elif longest > self.max_length:
                complaints.append(
                    f"INPUT__1 counts a window of {longest} columns; this model reads {self.max_length} of a window"
                )
            elif bad.size(0) > 0:
                complaints.append(
                    f"INPUT__0 has token id {int(input_ids[row, int(bad[0])])} in column {int(bad[0])}; this "
                    f"checkpoint's ids are 0 to {self.vocab_size - 1}"
                )
            else:
                complaints.append("")
        return complaints
