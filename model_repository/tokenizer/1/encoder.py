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
# Columns of a request unless a row is longer. Then the next power of two: few widths, so that Triton still finds
# requests of equal width to batch. A row of this width has 4 KiB per tensor.
USUAL_WIDTH = 512


class Row(NamedTuple):
    """A tokenized text: token ids, and token types of the same length; both window after window.

    Each window adds 2 to its token types. cut: whether tokens were cut off. tokens: read of the text, special ones
    included, each counted once.
    """

    ids: list[int]
    types: list[int]
    cut: bool
    tokens: int


class Encoder:
    """Truncates to `max_length`, which the build wrote into tokenizer.json, and pads to at most `widest` columns.

    If `widest` has room for several windows of max_length, a long text is cut into windows that overlap by `stride`.
    A pair is always truncated.

    file: path of tokenizer.json. Two threads may tokenize at once; it releases the interpreter lock.
    """

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.pairs = Pairs(self.tokenizer)
        self.max_length = self.pairs.max_length
        padding = json.loads(file.read_text(encoding="utf-8"))["padding"]
        self.pad_id: int = padding["pad_id"]
        self.widest: int = padding["strategy"]["Fixed"]
        self.usual = min(USUAL_WIDTH, self.max_length)
        self.windows = self.widest // self.max_length
        # Tokens of a window that the one before it has, too.
        self.shared = self.pairs.stride + self.tokenizer.num_special_tokens_to_add(is_pair=False)

    def tokenize(self, texts: Sequence[Text]) -> list[Row]:
        encodings = iter(self.tokenizer.encode_batch_fast([text for text in texts if isinstance(text, str)]))
        return [self.row(next(encodings)) if isinstance(text, str) else self.pair(*text) for text in texts]

    def row(self, encoding: Encoding) -> Row:
        ids = encoding.ids
        if self.windows > 1:
            return self.document([encoding, *encoding.overflowing])
        # Only a full row can be cut.
        return Row(ids, encoding.type_ids, len(ids) == self.max_length and bool(encoding.overflowing), len(ids))

    def pair(self, first: str, second: str) -> Row:
        ids, types, cut = self.pairs.encode(first, second)
        return Row(ids, types, cut, len(ids))

    def document(self, encodings: Sequence[Encoding]) -> Row:
        """A row of windows. Token types above 1, which no padding-free graph knows, count as 1."""
        ids: list[int] = []
        types: list[int] = []
        read = encodings[: self.windows]
        for number, encoding in enumerate(read):
            ids += encoding.ids
            types += [2 * number + min(token_type, 1) for token_type in encoding.type_ids]
        return Row(ids, types, len(encodings) > len(read), len(ids) - (len(read) - 1) * self.shared)

    def width(self, longest: int) -> int:
        """Columns for rows of at most `longest` tokens."""
        return min(max(self.usual, 1 << (longest - 1).bit_length() if longest else 0), self.widest)

    def outputs(self, rows: Sequence[Row]) -> Outputs:
        """The tensors of a request with n texts:

        INPUT_IDS: (n, width) int64, padded. ATTENTION_MASK: (n, width) int64, token type + 1 for a token (2 marks the
        second text of a pair, 3 the second window of a text), 0 for padding. TOKENS: (n, 1) int32. TRUNCATED: (n, 1)
        bool.
        """
        width = self.width(max((len(row.ids) for row in rows), default=0))
        input_ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(rows), width), dtype=np.int64)
        tokens = np.empty((len(rows), 1), dtype=np.int32)
        truncated = np.empty((len(rows), 1), dtype=np.bool_)
        for index, row in enumerate(rows):
            count = len(row.ids)
            tokens[index], truncated[index] = row.tokens, row.cut
            input_ids[index, :count] = row.ids
            attention_mask[index, :count] = row.types
            attention_mask[index, :count] += 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}
