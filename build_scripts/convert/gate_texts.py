"""The texts on which a written file is compared with Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.core.errors import ServingError
from build_scripts.core.paths import CALIBRATION
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
