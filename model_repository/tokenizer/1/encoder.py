"""texts -> the tensors that the tokenizer model answers with, exactly as Hugging Face's tokenizer gives them.

A text is always tokenized as a whole: a part of it may give other tokens, and where it may be cut depends on every
detail of a tokenizer. What long texts cost is bounded elsewhere, by limits and by the thread that takes them.
"""

import json

import numpy as np
from tokenizers import Tokenizer


class Encoder:
    """Truncates and pads to `max_length`, which the build wrote into the file.

    file: the path of tokenizer.json. Two threads may encode at once; the interpreter is free meanwhile.
    """

    def __init__(self, file):
        self.tokenizer = Tokenizer.from_file(str(file))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.max_length = self.tokenizer.truncation["max_length"]
        self.pad_id = json.loads(file.read_text(encoding="utf-8"))["padding"]["pad_id"]

    def encode(self, texts):
        """texts: list of n str -> the outputs by name: INPUT_IDS, ATTENTION_MASK (n, max_length) int64, TOKENS (n, 1)
        int32, how many columns are tokens, TRUNCATED (n, 1) bool, whether the text has more."""
        input_ids = np.full((len(texts), self.max_length), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(texts), self.max_length), dtype=np.int64)
        tokens = np.empty((len(texts), 1), dtype=np.int32)
        truncated = np.empty((len(texts), 1), dtype=np.bool_)
        for row, encoding in enumerate(self.tokenizer.encode_batch_fast(texts)):
            ids = encoding.ids
            tokens[row] = len(ids)
            truncated[row] = len(ids) == self.max_length and bool(encoding.overflowing)  # only a full one can be
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}
