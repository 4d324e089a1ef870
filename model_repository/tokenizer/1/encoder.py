"""Texts, or pairs of them -> the tensors that the tokenizer model answers with, exactly as Hugging Face gives them.

A text is always tokenized as a whole: a part of it may give other tokens, and where it may be cut depends on every
detail of a tokenizer. What long texts cost is bounded elsewhere, by limits and by the thread that takes them.
"""

import json

import numpy as np
from pairs import Pairs
from tokenizers import Tokenizer


class Encoder:
    """Truncates and pads to `max_length`, which the build wrote into the file.

    file: the path of tokenizer.json. Two threads may encode at once; the interpreter is free meanwhile.
    """

    def __init__(self, file):
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.pairs = Pairs(self.tokenizer)
        self.max_length = self.tokenizer.truncation["max_length"]
        self.pad_id = json.loads(file.read_text(encoding="utf-8"))["padding"]["pad_id"]

    def encode(self, texts):
        """The outputs by name: INPUT_IDS (n, max_length) int64; ATTENTION_MASK of the same shape, one more than a
        token's type, that is 1 or, for the second text of a pair, 2, and 0 for padding; TOKENS (n, 1) int32, how many
        columns are tokens; TRUNCATED (n, 1) bool, whether the text has more.

        texts: list of n str or pairs of str.
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
                cut = len(ids) == self.max_length and bool(encoding.overflowing)  # only a full one can be
            else:
                ids, types, cut = self.pairs.encode(*text)
            tokens[row], truncated[row] = len(ids), cut
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = types
            attention_mask[row, : len(ids)] += 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}
