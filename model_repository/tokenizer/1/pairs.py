"""A pair of texts -> token ids and token types, as Hugging Face's `tokenizer([text], [text_pair], truncation=True)`.

Each text is tokenized by itself and the two are joined here. Asked for a pair that is too long, the tokenizers package
also makes every combination of what was cut off: gigabytes for two texts of a megabyte.
"""

import itertools


class Pairs:
    """tokenizer: with truncation enabled; what a pair has between and around its texts is asked of it once."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        truncation = tokenizer.truncation
        self.keep_end = truncation["direction"].lower() == "left"
        tokenizer.no_truncation()  # which may leave a sample nothing but special tokens
        samples = (tokenizer.encode(word, word) for word in itertools.chain(["a"], tokenizer.get_vocab()))
        sample = next(sample for sample in samples if {0, 1} <= set(sample.sequence_ids))
        tokenizer.enable_truncation(**truncation)
        # (sequence, token id, token type): sequence 0 and 1 stand for all tokens of a text, None for a special token.
        self.frame = []
        for place in zip(sample.sequence_ids, sample.ids, sample.type_ids):
            if place[0] is None or not self.frame or self.frame[-1][0] != place[0]:
                self.frame.append(place)
        self.room = truncation["max_length"] - sum(sequence is None for sequence, _, _ in self.frame)

    def tokenize(self, texts):
        """The encodings of texts without special tokens, cut to max_length; what was cut off hangs on to each."""
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def encode(self, first, second):
        """Token ids, token types (lists of the same length, max_length at most), and whether anything was cut."""
        encodings = self.tokenize([first, second])
        counts = [len(encoding) + sum(map(len, encoding.overflowing)) for encoding in encodings]
        kept = longest_first(*counts, self.room)
        parts = [self.part(encoding.ids, count) for encoding, count in zip(encodings, kept)]
        ids, types = [], []
        for sequence, token, token_type in self.frame:
            part = [token] if sequence is None else parts[sequence]
            ids += part
            types += [token_type] * len(part)
        return ids, types, sum(counts) > self.room

    def part(self, ids, count):
        return ids[len(ids) - count :] if self.keep_end else ids[:count]


def longest_first(first, second, room):
    """How many tokens of each text are kept: the longer one is cut until both are equal, then both are.

    An odd token goes to the longer text, or to the second.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)
