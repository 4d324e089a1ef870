"""Texts to try everything with: real ones, generated ones, and hostile ones. All are valid UTF-8."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import strategies as st

from build_scripts.releases.default_model import headlines

HEADLINES = [text for _, text in headlines("heldout")]

# What scripts, normalizers and careless clients produce.
HOSTILE = [
    "",
    " ",
    "\n\t\r\n",
    "a",
    "\x00\x01\x07\x7f\x9f",
    "\ufeffbyte order mark",
    "zero\u200bwidth\u200dand soft\u00adhyphen\u2060",
    "no-break\u00a0space, thin\u2009space, ideographic\u3000space, line\u2028and paragraph\u2029separators",
    "   leading and trailing   ",
    "tabs\tand\r\nlines\n",
    "Ünïcödé, NAÏVE CAFÉ, İstanbul, ﬁne ŉ ǆ ẞ",
    "e\u0301" * 40,
    "a" + "\u0300" * 300,
    "\u0301 a combining mark first",
    "财经新闻：央行宣布降准，股市大涨。",
    "日本語のテキスト と 한국어 텍스트",
    "الأسواق العالمية تتراجع ١٢٣",
    "भारत में चुनाव, ไทย, עברית",
    "\u202eright to left override\u202c",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "\U00020000\U0002f800 beyond the basic plane \U0010ffff",
    "\ufffd \ufffe \uffff",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <pad> <mask> <unk>",
    "[MASK][MASK] [ MASK ] <mask>.</s></s>",
    "[mask] <MASK> [Mask",
    "don't can't it's 12:30 $4.50 50% a@b.c https://example.org/?q=1&r=2#x",
    "!?!?!?---...///\\\\\\'\"`~^|<=>+$",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101,
    "word " * 700,
    "字" * 700,
    "。，" * 400,
]


def of_length(characters: int, seed: int = 0) -> str:
    """Generated text of exactly that many characters: words, Han, emoji, punctuation and spaces."""
    generator = random.Random(f"{characters}-{seed}")
    parts: list[str] = []
    length = 0
    while length < characters:
        parts.append(generator.choice(PIECES)(generator))
        length += len(parts[-1])
    return "".join(parts)[:characters]


PIECES: list[Callable[[random.Random], str]] = [
    lambda generator: f" {generator.choice(generator.choice(HEADLINES).split())}",
    lambda generator: f" {generator.choice(HEADLINES)}.",
    lambda generator: "".join(chr(generator.randint(0x4E00, 0x4F00)) for _ in range(generator.randint(1, 12))),
    lambda generator: chr(generator.randint(0x1F300, 0x1F64F)),
    lambda generator: generator.choice("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~") * generator.randint(1, 3),
    lambda generator: generator.choice([" ", "  ", "\n", "\t", "\u3000"]),
    lambda generator: chr(generator.choice([0xE9, 0x301, 0x200B, 0x627, 0x905, 0xAC00])),
]

LENGTHS = (1, 2, 10, 100, 1_000, 10_000, 100_000)
VARIED = [*HEADLINES[::5], *HOSTILE, *(of_length(length) for length in LENGTHS)]

# A premise and a hypothesis: short, long, both long, one empty or both, and what looks like a border between them.
PAIRS = [
    *zip(HEADLINES[:20:2], HEADLINES[1:20:2]),
    ("", ""),
    ("a premise alone", ""),
    ("", "a hypothesis alone"),
    ("a [SEP] b </s> c", "[SEP] </s></s> [CLS]"),
    ("中文 的 前提", "한국어 \U0001f642"),
    ("short", "word " * 700),
    ("word " * 700, "short"),
    *(
        (" ".join(HEADLINES[:first]), " ".join(HEADLINES[second:]))
        for first, second in ((90, -91), (91, -90), (9, -40))
    ),
    (of_length(3_000, 1), of_length(3_000, 2)),
]

LONGEST = 1 << 17
# One text of the most bytes that are served, of every kind that a tokenizer handles differently.
LONGEST_TEXTS: dict[str, str] = {
    "words": ("quarterly results beat forecasts " * LONGEST)[:LONGEST],
    "one giant word": "antidisestablishmentarianism" * (LONGEST // 28),
    "han": "".join(chr(0x4E00 + index % 400) for index in range(LONGEST // 3)),
    "punctuation": ("!?.,;:-" * LONGEST)[:LONGEST],
    "spaces": " " * (LONGEST - 1) + "x",
    "emoji": "\U0001f600\U0001f680" * (LONGEST // 8),
    "combining marks": "a\u0300\u0316" * (LONGEST // 5),
    "a mix": of_length(LONGEST // 3),
}

# Pieces that meet a boundary of tokenization; hypothesis joins them in any order.
FRAGMENTS = ["the", " market", "Café", " ", "  ", "\n", "中文", "学", "，", "[MASK]", "<mask>", "</s>", "##", "'s", "…",
             "\u0301", "\u200d", "\x00", "😀", "1,000", "-", "ﬁ", "İ"]  # fmt: skip
any_text = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(FRAGMENTS), max_size=60).map("".join),
    st.lists(st.sampled_from(HEADLINES), max_size=4).map(" ".join),
)
