"""Compare a written TorchScript file with plain Hugging Face, text by text. Measures; the caller judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.core.errors import ServingError
from build_scripts.core.options import LONGEST_MAX_LENGTH
from build_scripts.core.paths import CALIBRATION
from build_scripts.core.text_files import read_lines

# Two classes whose probabilities differ by less are a near tie: any rounding may decide it.
NEAR_TIE = 0.01
# The batch sizes of the comparison, in turn: one text, an odd number, a full batch.
BATCH_SIZES = (1, 3, 8, 32)
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
# At most so many special tokens are tried; some tokenizers have hundreds, all alike.
SPECIAL_TOKENS = 8


@dataclass(frozen=True)
class Reference:
    """What Hugging Face answers. probabilities: (texts, labels) fp32."""

    texts: list[Text]
    probabilities: torch.Tensor


@dataclass(frozen=True)
class Parity:
    """How far a file is from the reference; `wrong` counts differing class ids that are no near tie."""

    texts: int
    wrong: int
    near_ties: int
    max_probability_error: float


def calibration_texts(file: Path | None = None) -> list[str]:
    """The texts of a user's file, or a built-in multilingual list; always with hostile ones added.

    Raises ServingError if the file holds none.
    """
    texts = [line for line in read_lines("CALIBRATION", file or CALIBRATION) if line.strip()]
    if not texts:
        raise ServingError(f"CALIBRATION={file} holds no text; expected texts, one a line")
    return texts + HOSTILE_TEXTS


def special_token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that hold special tokens, once and several times, each with neighbours that hold none.

    A model that looks for one of them must look in each text for itself.
    """
    texts = []
    for token in tokenizer.all_special_tokens[:SPECIAL_TOKENS]:
        texts += [f"one {token} two", "nothing special", f"one {token} two {token} three {token}", token]
    return texts


def pairs(checkpoint: Checkpoint) -> list[Text]:
    """PAIRS if the checkpoint has token types for them, and transformers itself can answer them; otherwise none.

    Without token types a pair is a text like any other to the model.
    """
    if checkpoint.token_types == 1:
        return []
    try:
        with torch.inference_mode():
            for pair in PAIRS:
                checkpoint.logits(pair)
    except Exception:  # a forward may raise anything: token types that the model does not have, no room for a pair
        return []
    return PAIRS


def interleaved(texts: Sequence[Text], others: Sequence[Text]) -> list[Text]:
    """All of both, the others spread evenly, so that batches mix them."""
    step = max(1, -(-len(texts) // max(1, len(others))))
    mixed: list[Text] = []
    for index, other in enumerate(others):
        mixed += [*texts[index * step : (index + 1) * step], other]
    return [*mixed, *texts[len(others) * step :]]


def probabilities(logits: torch.Tensor, multi_label: bool) -> torch.Tensor:
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def reference(checkpoint: Checkpoint, texts: Sequence[Text]) -> Reference:
    """Hugging Face's tokenizer and eager fp32 model, one text at a time: no padding, nothing shared."""
    rows = []
    with torch.inference_mode():
        for text in tqdm(texts, desc="Hugging Face's answers", unit="text", disable=None, leave=False):
            rows.append(probabilities(checkpoint.logits(text), checkpoint.multi_label))
    return Reference(list(texts), torch.stack(rows))


def measure(file: Path, checkpoint: Checkpoint, expected: Reference, device: str = "cpu") -> Parity:
    """Run the file on the reference's texts, in batches of every size in BATCH_SIZES, padded to max_length.

    First on what a server sends it when it starts: a row of zeros that counts nothing, alone and beside another.
    """
    model = torch.jit.load(str(file), map_location=device).eval()
    ids, found = [], []
    start = turn = 0
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for rows in (1, 2):
            nothing = torch.zeros(rows, LONGEST_MAX_LENGTH, dtype=torch.int64, device=device)
            model(nothing, nothing)
        while start < len(expected.texts):
            size = BATCH_SIZES[turn % len(BATCH_SIZES)]
            inputs = checkpoint.tokenize(expected.texts[start : start + size])
            class_id, rows = model(*(tensor.to(device) for tensor in inputs))
            ids.append(class_id[:, 0].cpu())
            found.append(rows.cpu())
            start, turn = start + size, turn + 1
    return judge(expected.probabilities, torch.cat(ids), torch.cat(found))


def judge(expected: torch.Tensor, class_ids: torch.Tensor, found: torch.Tensor) -> Parity:
    """expected, found: (texts, labels) probabilities; class_ids: (texts,). NaN counts as the largest error."""
    best = expected.topk(2, dim=1).values
    differs = class_ids != expected.argmax(1)
    near_tie = (best[:, 0] - best[:, 1]) < NEAR_TIE
    return Parity(
        texts=len(expected),
        wrong=int((differs & ~near_tie).sum()),
        near_ties=int((differs & near_tie).sum()),
        max_probability_error=float((found - expected).abs().nan_to_num(nan=1.0).max()),
    )
