"""The texts on which a written file is compared with Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.convert.varied_texts import lengths_around, varied_pairs, varied_texts
from build_scripts.core.errors import ServingError
from build_scripts.core.paths import CALIBRATION, CORPUS, UNSEEN
from build_scripts.core.text_files import read_lines

HOSTILE_TEXTS = [
    "",
    " ",
    "\t\n",
    "a",
    "\x00\x07",
    "e\u0301" * 40,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "word " * 700,
]
# Both short, one or both long, one or both empty.
PAIRS: list[Text] = [
    ("A man plays a guitar on the stage.", "Somebody makes music."),
    ("one", "word " * 700),
    ("word " * 700, "two"),
    ("word " * 600, "and " * 700),
    ("one", ""),
    ("", "two"),
    ("", ""),
]
# Maximum number of special tokens to try; some tokenizers have hundreds, all alike.
SPECIAL_TOKENS = 8
# Generated texts of the gate.
GENERATED = 240
# Texts that no gate sees. Up to 2 of 650 may break a limit before the 95 % bound exceeds 1 %.
HELD_OUT = 650
# Pairs among the generated texts, for checkpoints that tell two texts apart.
PAIR_SHARE = 0.1


@dataclass(frozen=True)
class GateTexts:
    """A file passes by its answers to the ordinary and the hard texts. The held-out texts only bound what others lose.

    own_texts: whether the held-out texts are the user's.
    """

    ordinary: list[Text]
    hard: list[Text]
    held_out: list[Text]
    own_texts: bool = False


def gate_texts(checkpoint: Checkpoint, texts: list[str], users: bool = False) -> GateTexts:
    """The texts to compare on. texts: ordinary texts for the gate. users: whether they come from CALIBRATION.

    A user's file that is long enough gives half of its texts to the held-out ones.
    """
    hard = hard_texts(checkpoint)
    pair_share = PAIR_SHARE if any(isinstance(text, tuple) for text in hard) else 0.0
    sentences = calibration_texts()
    generated = [*_generated(sentences, GENERATED, pair_share, seed=1), *lengths_around(checkpoint, sentences)]
    if users and len(texts) >= 2 * HELD_OUT:
        return GateTexts([*texts[::2], *generated], hard, list(texts[1::2]), own_texts=True)
    held_out = _generated([*calibration_texts(UNSEEN), *calibration_texts(CORPUS)], HELD_OUT, pair_share, seed=2)
    return GateTexts([*texts, *generated], hard, held_out)


def _generated(sentences: list[str], count: int, pair_share: float, seed: int) -> list[Text]:
    pairs = round(pair_share * count)
    return [*varied_texts(sentences, count - pairs, seed), *varied_pairs(sentences, pairs, seed + 100)]


def calibration_texts(file: Path | None = None) -> list[str]:
    """The texts of a user's file, or the built-in multilingual list. Raises ServingError for a file without texts."""
    texts = [line for line in read_lines("CALIBRATION", file or CALIBRATION) if line.strip()]
    if not texts:
        raise ServingError(f"CALIBRATION={file} holds no text; expected texts, one per line")
    return texts


def hard_texts(checkpoint: Checkpoint) -> list[Text]:
    """Texts on which a graph fails first: special tokens, pairs, nothing to read, far too long."""
    return [*special_token_texts(checkpoint.tokenizer), *pairs(checkpoint), *HOSTILE_TEXTS]


def special_token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts with a special token, once and several times, beside a neighbour without one.

    A model that looks for a special token must look in each text separately.
    """
    texts = []
    for token in tokenizer.all_special_tokens[:SPECIAL_TOKENS]:
        texts += [f"one {token} two", "nothing special", f"one {token} two {token} three {token}", token]
    return texts


def pairs(checkpoint: Checkpoint) -> list[Text]:
    """PAIRS, if the checkpoint has token types for them and transformers itself answers them; otherwise none.

    Without token types the model sees a pair as one text.
    """
    if checkpoint.token_types == 1:
        return []
    try:
        with torch.inference_mode():
            for pair in PAIRS:
                checkpoint.logits(pair)
    except Exception:  # errors of any type: unknown token types, no room for a pair
        return []
    return PAIRS


def interleaved(texts: Sequence[Text], others: Sequence[Text]) -> list[Text]:
    """All texts of both lists, the others spread evenly, so that batches mix them."""
    step = max(1, -(-len(texts) // max(1, len(others))))
    mixed: list[Text] = []
    for index, other in enumerate(others):
        mixed += [*texts[index * step : (index + 1) * step], other]
    return [*mixed, *texts[len(others) * step :]]
