"""Texts or pairs of texts -> the tensors that the tokenizer model returns, equal to Hugging Face's.

A text is always tokenized whole: a fragment may give other tokens, and no safe place to cut holds for every tokenizer.
Limits on bytes and a separate thread bound the cost of long texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pairs import Pairs
from tokenizers import Tokenizer

Text = str | tuple[str, str]
# Output name -> array, one row per text.
Outputs = dict[str, np.ndarray]


class Encoder:
    """Truncates and pads to `max_length`, which the build wrote into tokenizer.json.

    file: path of tokenizer.json. Two threads may encode at once; encoding releases the interpreter lock.
    """

    def __init__(self, file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.pairs = Pairs(self.tokenizer)
        self.max_length = self.pairs.max_length
        self.pad_id: int = json.loads(file.read_text(encoding="utf-8"))["padding"]["pad_id"]

    def encode(self, texts: Sequence[Text]) -> Outputs:
        """Tokenize n texts. Returns, by output name:

        INPUT_IDS: (n, max_length) int64, padded. ATTENTION_MASK: (n, max_length) int64, token type + 1 for a token (2
        marks the second text of a pair), 0 for padding. TOKENS: (n, 1) int32. TRUNCATED: (n, 1) bool.
        """
        input_ids = np.full((len(texts), self.max_length), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(texts), self.max_length), dtype=np.int64)
        tokens = np.empty((len(texts), 1), dtype=np.int32)
        truncated = np.empty((len(texts), 1), dtype=np.bool_)
        encodings = iter(self.tokenizer.encode_batch_fast([text for text in texts if isinstance(text, str)]))
        for row, text in enumerate(texts):
            if isinstance(text, str):
                encoding = next(encodings)
                ids, types = encoding.ids, encoding.type_ids
                cut = len(ids) == self.max_length and bool(encoding.overflowing)  # only a full row can be cut
            else:
                ids, types, cut = self.pairs.encode(*text)
            tokens[row], truncated[row] = len(ids), cut
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = types
            attention_mask[row, : len(ids)] += 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}
