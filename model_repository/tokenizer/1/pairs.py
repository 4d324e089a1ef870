"""A pair of texts -> token ids and token types, as Hugging Face's `tokenizer([text], [text_pair], truncation=True)`.

Each text is tokenized separately and joined here. For a pair that is too long, the tokenizers package would also build
every combination of the truncated parts: gigabytes for two texts of a megabyte.
"""

from __future__ import annotations

import itertools

from tokenizers import Encoding, Tokenizer


class Pairs:
    """tokenizer: with truncation enabled. A sample pair shows once which special tokens surround the texts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        truncation = dict(tokenizer.truncation or {})
        self.max_length: int = truncation["max_length"]
        self.stride: int = truncation.get("stride", 0)  # tokens that the parts of a long text share
        self.keep_end = truncation["direction"].lower() == "left"
        tokenizer.no_truncation()  # truncation could leave only special tokens of the sample
        samples = (tokenizer.encode(word, word) for word in itertools.chain(["a"], tokenizer.get_vocab()))
        sample = next(sample for sample in samples if {0, 1} <= set(sample.sequence_ids))
        tokenizer.enable_truncation(**truncation)
        # (sequence, token id, token type). Sequence 0 or 1 stands for all tokens of that text; None: a special token.
        self.frame: list[tuple[int | None, int, int]] = []
        for place in zip(sample.sequence_ids, sample.ids, sample.type_ids):
            if place[0] is None or not self.frame or self.frame[-1][0] != place[0]:
                self.frame.append(place)
        # Tokens of both texts that fit; negative if the special tokens alone exceed max_length.
        self.room = self.max_length - sum(sequence is None for sequence, _, _ in self.frame)

    def tokenize(self, texts: list[str]) -> list[Encoding]:
        """Encodings without special tokens, cut to max_length; `overflowing` holds the rest of each."""
        return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def encode(self, first: str, second: str) -> tuple[list[int], list[int], bool]:
        """Token ids and token types, at most max_length of each, and whether a text was cut."""
        encodings = self.tokenize([first, second])
        counts = [len(one) + sum(len(part) - self.stride for part in one.overflowing) for one in encodings]
        kept = longest_first(counts[0], counts[1], self.room)
        parts = [self.part(encoding.ids, count) for encoding, count in zip(encodings, kept)]
        ids: list[int] = []
        types: list[int] = []
        for sequence, token, token_type in self.frame:
            part = [token] if sequence is None else parts[sequence]
            ids += part
            types += [token_type] * len(part)
        return ids, types, sum(counts) > self.room

    def part(self, ids: list[int], count: int) -> list[int]:
        return ids[len(ids) - count :] if self.keep_end else ids[:count]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens to keep of each text: the longer one is cut until both are equal, then both are cut alike.

    An odd token goes to the longer text, or to the second if both are equal.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (room - shorter, shorter) if first > second else (shorter, room - shorter)
