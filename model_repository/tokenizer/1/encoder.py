"""Texts or pairs of texts -> the tensors that the tokenizer model returns, equal to Hugging Face's.

A text is always tokenized whole: a fragment may give other tokens, and no safe place to cut holds for every tokenizer.
Limits on bytes and a separate thread bound the cost of long texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pairs import Pairs
from tokenizers import Encoding, Tokenizer

Text = str | tuple[str, str]
# Output name -> array, one row per text.
Outputs = dict[str, np.ndarray]
# Columns of a request unless a text is longer. Then the next power of two: few widths, so that Triton still finds
# requests of equal width to batch. A row of this width has 4 KiB per tensor.
USUAL_WIDTH = 512


class Row(NamedTuple):
    """A tokenized text: token ids, token types of the same length, and whether tokens were cut off."""

    ids: list[int]
    types: list[int]
    cut: bool


class Encoder:
    """Truncates to `max_length`, which the build wrote into tokenizer.json, and pads.

    file: path of tokenizer.json. Two threads may tokenize at once; it releases the interpreter lock.
    """

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.pairs = Pairs(self.tokenizer)
        self.max_length = self.pairs.max_length
        self.pad_id: int = json.loads(file.read_text(encoding="utf-8"))["padding"]["pad_id"]

    def tokenize(self, texts: Sequence[Text]) -> list[Row]:
        encodings = iter(self.tokenizer.encode_batch_fast([text for text in texts if isinstance(text, str)]))
        return [
            self.row(next(encodings)) if isinstance(text, str) else Row(*self.pairs.encode(*text)) for text in texts
        ]

    def row(self, encoding: Encoding) -> Row:
        ids = encoding.ids
        # Only a full row can be cut.
        return Row(ids, encoding.type_ids, len(ids) == self.max_length and bool(encoding.overflowing))

    def width(self, longest: int) -> int:
        """Columns for texts of at most `longest` tokens."""
        return min(max(USUAL_WIDTH, 1 << (longest - 1).bit_length() if longest else 0), self.max_length)

    def outputs(self, rows: Sequence[Row]) -> Outputs:
        """The tensors of a request with n texts:

        INPUT_IDS: (n, width) int64, padded. ATTENTION_MASK: (n, width) int64, token type + 1 for a token (2 marks the
        second text of a pair), 0 for padding. TOKENS: (n, 1) int32. TRUNCATED: (n, 1) bool.
        """
        width = self.width(max((len(row.ids) for row in rows), default=0))
        input_ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        tokens = np.empty((len(rows), 1), dtype=np.int32)
        truncated = np.empty((len(rows), 1), dtype=np.bool_)
        for index, row in enumerate(rows):
            count = len(row.ids)
            tokens[index], truncated[index] = count, row.cut
            input_ids[index, :count] = row.ids
            attention_mask[index, :count] = row.types
            attention_mask[index, :count] += 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}
