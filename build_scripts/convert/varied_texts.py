"""Generate texts in many scripts, formats and lengths from a list of sentences. Deterministic."""

from __future__ import annotations

import random
from collections.abc import Callable

from build_scripts.convert.checkpoint import Checkpoint, Text

# First and last letter of Unicode blocks, for random words in rarely used scripts.
SCRIPTS = [
    (0xE0, 0x17F), (0x3B1, 0x3C9), (0x430, 0x44F), (0x561, 0x586), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939),
    (0x985, 0x9B9), (0xB85, 0xBB9), (0xE01, 0xE2E), (0x10D0, 0x10F0), (0x1200, 0x1248), (0x3041, 0x3096),
    (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
]  # fmt: skip
SYMBOLS = "←↑→↓∀∂∃∅∇∈∑√∞∧∨∩∪≈≠≤≥⊂⊕£¥€₹₿©®™§¶†‡•…‰′″«»“”‘’–—─│┌┐└┘█░▒▓■□▲▼◆○●★☆♠♣♥♦✓✗①②③½¼¾²³°±×÷µ"
EMOJI = [*"😀😂🥲😍🤔😡😭🙏👍🔥🎉❤🚀🐱🍕⚽🏠💰📈☕🌧", "👩‍🚒", "👨‍👩‍👧", "🏳️‍🌈", "🇩🇪", "👍🏽", "1️⃣"]
CODE = [
    "def {a}({b}, {c}={n}): return {b} * {c} + {n}", "for {a} in range({n}): {b}[{a}] += {c}({a})",
    "{a} = {{'{b}': {n}}}", "if ({a} != NULL && {b}->{c} < {n}) {{ return -1; }}", "{a}@{b}.example", "#{a} #{b} @{c}",
    "SELECT {a}, COUNT(*) FROM {b} WHERE {c} > {n} GROUP BY {a};", '{{"{a}": {n}, "{b}": ["{c}", null, true]}}',
    "2026-0{d}-1{d}T0{d}:3{d}:07Z ERROR [{a}] {b} failed: {c} (code {n})", "https://www.{a}.example/{b}/{c}?id={n}#x",
    "<div class='{a}'><a href=\"/{b}\">{c}</a></div>", "C:\\Users\\{a}\\{b}\\{c}_{n}.docx",
    "$ {a} --{b}={n} | {c} -x > /tmp/{a}", "x^{d} + {n}x = \\frac{{{a}}}{{{d}}}",
]  # fmt: skip
NUMBERS = [
    "{n}", "{n}.{d}{d}%", "${n},{d}00.50", "+49 30 {n}{d}{n}", "{d}:3{d} am", "0{d}/1{d}/2026", "{n} km/h", "-{n}e-{d}",
    "{d}-{d} ({d}:{d})", "№ {n}", "IBAN DE{n}{n}{n}", "192.168.{d}.{d}", "{n} × {d} = ?",
]  # fmt: skip
# Token counts beyond which common windows of local attention hide tokens: half a window or a whole one.
WINDOWS = (64, 128)


def varied_texts(sentences: list[str], count: int, seed: int) -> list[str]:
    """Generate `count` texts, cycling through the kinds. Different seeds give different texts."""
    rng = random.Random(seed)
    return [KINDS[number % len(KINDS)](rng, sentences) for number in range(count)]


def varied_pairs(sentences: list[str], count: int, seed: int) -> list[Text]:
    texts = varied_texts(sentences, 2 * count, seed)
    return list(zip(texts[:count], texts[count:]))


def lengths_around(checkpoint: Checkpoint, sentences: list[str]) -> list[str]:
    """Texts with token counts around the limits of attention windows and of max_length, and documents."""
    names = ("local_attention", "sliding_window", "attention_window", "position_buckets")
    own = [getattr(checkpoint.model.config, name, None) for name in names]
    edges = {edge for width in own if isinstance(width, int) and width > 0 for edge in (width // 2, width)}
    edges = {edge for edge in {*WINDOWS, *edges} if edge < checkpoint.max_length} | {checkpoint.max_length}
    counts = sorted({edge + step for edge in edges for step in (-1, 0, 1, 2)})
    if documents := checkpoint.documents:
        # Ends of the first windows, further texts up to the longest, and one that is cut.
        progress = (documents.tokens - checkpoint.max_length) // (documents.windows - 1)
        ends = [checkpoint.max_length + progress * further for further in range(1, documents.windows)]
        counts += [*(end + step for end in ends[:2] for step in (0, 1)), *ends[2 :: 1 + len(ends) // 5]]
        counts += [documents.tokens, documents.tokens + progress]
    words = " ".join(sentences).split()
    words *= 1 + counts[-1] // len(words)
    return [_with_tokens(checkpoint, words[7 * number :], count) for number, count in enumerate(counts)]


def _with_tokens(checkpoint: Checkpoint, words: list[str], count: int) -> str:
    """Consecutive words, the last one cut, with `count` tokens or slightly fewer."""
    few, many = 0, min(len(words), count + 1)
    while many - few > 1:
        middle = (few + many) // 2
        enough = len(checkpoint.tokenizer(" ".join(words[:middle]))["input_ids"]) >= count
        few, many = (few, middle) if enough else (middle, many)
    text = " ".join(words[:many])
    while len(checkpoint.tokenizer(text)["input_ids"]) > count:
        text = text[:-1]
    return text


def _words(rng: random.Random, sentences: list[str], median: float = 12.0) -> str:
    """Consecutive words of random sentences. Their number is lognormal around `median`."""
    wanted = max(1, min(600, round(rng.lognormvariate(0, 1) * median)))
    words: list[str] = []
    while len(words) < wanted:
        words += rng.choice(sentences).split()
    start = rng.randint(0, len(words) - wanted)
    return " ".join(words[start : start + wanted])


def _long(rng: random.Random, sentences: list[str]) -> str:
    return _words(rng, sentences, 200)


def _mixed(rng: random.Random, sentences: list[str]) -> str:
    """Parts of sentences in several languages."""
    return rng.choice([" ", ". ", " - ", "\n", ""]).join(_words(rng, sentences, 5) for _ in range(rng.randint(2, 4)))


def _script(rng: random.Random, sentences: list[str]) -> str:
    """Random words of one script, which most tokenizers cut into single characters."""
    first, last = rng.choice(SCRIPTS)
    words = range(rng.randint(1, 25))
    return " ".join("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 9))) for _ in words)


def _symbols(rng: random.Random, sentences: list[str]) -> str:
    parts = [rng.choice([_words(rng, sentences, 3), *rng.choices(SYMBOLS, k=4)]) for _ in range(rng.randint(1, 12))]
    return rng.choice(["", " "]).join(parts)


def _emoji(rng: random.Random, sentences: list[str]) -> str:
    parts = [
        rng.choice([_words(rng, sentences, 4), "".join(rng.choices(EMOJI, k=rng.randint(1, 6)))]) for _ in range(4)
    ]
    return rng.choice(["", " "]).join([*parts, rng.choice(EMOJI)])


def _filled(rng: random.Random, templates: list[str], sentences: list[str]) -> str:
    names = ["_".join(_words(rng, sentences, 1).split()[:2]).lower() for _ in range(3)]
    return rng.choice(templates).format(a=names[0], b=names[1], c=names[2], n=rng.randint(0, 9999), d=rng.randint(0, 9))


def _code(rng: random.Random, sentences: list[str]) -> str:
    return "\n".join(_filled(rng, CODE, sentences) for _ in range(rng.choice([1, 1, 2, 5])))


def _numbers(rng: random.Random, sentences: list[str]) -> str:
    return f"{_filled(rng, NUMBERS, sentences)} {_words(rng, sentences, 4)} {_filled(rng, NUMBERS, sentences)}"


def _damaged(rng: random.Random, sentences: list[str]) -> str:
    """Typing errors: changed case; lost, doubled, inserted or replaced characters."""
    text = _words(rng, sentences, 8)
    characters = list(rng.choice([text.upper(), text.lower(), text.title(), text]))
    for _ in range(max(1, len(characters) // 12)):
        place = rng.randrange(len(characters))
        characters[place] = rng.choice(["", 2 * characters[place], "!" + characters[place], characters[place - 1]])
    return "".join(characters)


KINDS: list[Callable[[random.Random, list[str]], str]] = [
    _words, _mixed, _script, _symbols, _emoji, _code, _numbers, _damaged, _words, _long,
]  # fmt: skip
