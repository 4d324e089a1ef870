"""The texts of the benchmarks: realistic lines of mixed lengths, and the workloads made of them."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from build_scripts.core.paths import DATA

CORPUS = DATA / "perf_corpus.txt"
# Limits in words of a short text (headline, message) and of a long one (article, letter).
SHORT_WORDS, LONG_WORDS = 16, 100
# Lengths of user-written text are roughly lognormal; these give a median of 25 tokens and some texts of hundreds.
LOG_MEAN, LOG_SIGMA = 3.2, 0.9
LOGNORMAL_TEXTS, SEED = 200, 7


@dataclass(frozen=True)
class Workload:
    """texts: in sending order. tokens: the token count of each text, special tokens included."""

    name: str
    texts: list[str]
    tokens: list[int]

    def padding(self, max_length: int) -> float:
        """Share of padding in a (texts, max_length) batch, from 0 to 1."""
        return 1 - sum(self.tokens) / (len(self.tokens) * max_length)

    def describe(self, max_length: int) -> str:
        return (
            f"{len(self.texts)} texts of {min(self.tokens)} to {max(self.tokens)} tokens, median "
            f"{statistics.median(self.tokens):.0f}, mean {statistics.mean(self.tokens):.0f}; "
            f"padded to {max_length} tokens, {self.padding(max_length):.1%} of a batch is padding"
        )


def corpus() -> list[str]:
    return CORPUS.read_text(encoding="utf-8").splitlines()


def workloads(count_tokens: Callable[[list[str]], list[int]]) -> list[Workload]:
    """The short, lognormal and long workload. count_tokens: counts as the served tokenizer does, with truncation."""
    texts = corpus()
    tokens = count_tokens(texts)
    shuffled = random.Random(SEED)
    return [
        Workload("short", *_pick(texts, tokens, _between(texts, 0, SHORT_WORDS, shuffled))),
        Workload("lognormal", *_pick(texts, tokens, lognormal_choice(tokens, LOGNORMAL_TEXTS, SEED))),
        Workload("long", *_pick(texts, tokens, _between(texts, LONG_WORDS, 10**9, shuffled))),
    ]


def lognormal_choice(tokens: list[int], count: int, seed: int) -> list[int]:
    """Indices into `tokens` with about lognormal lengths; an index may occur repeatedly."""
    source = random.Random(seed)
    chosen = []
    for _ in range(count):
        wanted = source.lognormvariate(LOG_MEAN, LOG_SIGMA)
        nearest = sorted(range(len(tokens)), key=lambda index: abs(tokens[index] - wanted))[:4]
        chosen.append(source.choice(nearest))
    return chosen


def _between(texts: list[str], fewest: int, most: int, source: random.Random) -> list[int]:
    indices = [index for index, text in enumerate(texts) if fewest <= len(text.split()) <= most]
    source.shuffle(indices)
    return indices


def _pick(texts: list[str], tokens: list[int], indices: list[int]) -> tuple[list[str], list[int]]:
    return [texts[index] for index in indices], [tokens[index] for index in indices]
