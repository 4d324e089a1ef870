"""Compare a written TorchScript file with plain Hugging Face, text by text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from build_scripts.convert.activation import Activation
from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.core.options import DEFAULT_MAX_LENGTH

# The gate: no probability may move by more, and no class id may change unless it is a near tie. For an unbounded score
# the limit is a share of the scale.
PROBABILITY_LIMITS = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}
# Below this difference of the two largest probabilities a text is a near tie: rounding may decide its class id.
NEAR_TIE = 0.01
# Batch sizes of the comparison, in rotation: one text, an odd number, a full batch.
BATCH_SIZES = (1, 3, 8, 32)


@dataclass(frozen=True)
class Reference:
    """Hugging Face's answers. probabilities: (texts, labels) fp32. scale: unit of a shift."""

    texts: list[Text]
    probabilities: torch.Tensor
    scale: float = 1.0

    def of(self, texts: Sequence[Text]) -> Reference:
        """The answers to some of the texts."""
        rows = {text: row for row, text in enumerate(self.texts)}
        return Reference(list(texts), self.probabilities[[rows[text] for text in texts]], self.scale)


@dataclass(frozen=True)
class Differences:
    """Text by text, (texts,): whether the class id is wrong or a near tie decided otherwise, and the largest shift."""

    wrong: torch.Tensor
    near_tie: torch.Tensor
    shift: torch.Tensor


@dataclass(frozen=True)
class Parity:
    """Distance of a file from the reference. wrong: class ids that differ and are no near tie."""

    texts: int
    wrong: int
    near_ties: int
    max_probability_error: float


def moved(checkpoint: Checkpoint, parity: Parity) -> str:
    """The largest shift, in words."""
    by = f"moves by {parity.max_probability_error:.2g}"
    if checkpoint.score is None:
        return f"a probability {by}"
    return f"a score {by} of the scores' spread" if checkpoint.score == "identity" else f"a score {by}"


def passes(parity: Parity, precision: str) -> bool:
    return parity.wrong == 0 and parity.max_probability_error <= PROBABILITY_LIMITS[precision]


def probabilities(logits: torch.Tensor, activation: Activation) -> torch.Tensor:
    """logits: (…, labels). The identity leaves scores as they are."""
    if activation == "identity":
        return logits
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)


def scale(found: torch.Tensor, activation: Activation) -> float:
    """1 for probabilities. For unbounded scores their spread or a tenth of the largest: rounding grows with both."""
    if activation != "identity":
        return 1.0
    return max(float(found.max() - found.min()), float(found.abs().max()) / 10) or 1.0


def reference(checkpoint: Checkpoint, texts: Sequence[Text]) -> Reference:
    """Hugging Face's tokenizer and eager fp32 model, one text at a time, without padding."""
    rows = []
    with torch.inference_mode():
        for text in tqdm(texts, desc="Hugging Face's answers", unit="text", disable=None, leave=False):
            rows.append(probabilities(checkpoint.logits(text), checkpoint.activation))
    found = torch.stack(rows)
    return Reference(list(texts), found, scale(found, checkpoint.activation))


def measure(file: Path, checkpoint: Checkpoint, expected: Reference, device: str = "cpu") -> Parity:
    return summed(differences(file, checkpoint, expected, device))


def differences(file: Path, checkpoint: Checkpoint, expected: Reference, device: str = "cpu") -> Differences:
    """Run the file on the reference's texts, in batches of the BATCH_SIZES, padded to max_length.

    The first calls are the server's warm-up: rows of zeros with an empty mask, one and two of them.
    """
    model = torch.jit.load(str(file), map_location=device).eval()
    ids, found = [], []
    start = turn = 0
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for rows in (1, 2):
            zeros = torch.zeros(rows, DEFAULT_MAX_LENGTH, dtype=torch.int64, device=device)
            model(zeros, zeros)
        while start < len(expected.texts):
            size = BATCH_SIZES[turn % len(BATCH_SIZES)]
            inputs = checkpoint.tokenize(expected.texts[start : start + size])
            class_id, rows = model(*(tensor.to(device) for tensor in inputs))
            ids.append(class_id[:, 0].cpu())
            found.append(rows.cpu())
            start, turn = start + size, turn + 1
    return judge(expected.probabilities, torch.cat(ids), torch.cat(found), expected.scale)


def judge(expected: torch.Tensor, class_ids: torch.Tensor, found: torch.Tensor, scale: float = 1.0) -> Differences:
    """expected, found: (texts, labels) probabilities; class_ids: (texts,). NaN counts as the largest error.

    A score's single class has no near tie.
    """
    best = expected.topk(min(2, expected.size(1)), dim=1).values
    differs = class_ids != expected.argmax(1)
    near_tie = (best[:, 0] - best[:, -1] < NEAR_TIE) & (expected.size(1) > 1)
    shift = ((found - expected).abs() / scale).nan_to_num(nan=1.0).amax(1)
    return Differences(differs & ~near_tie, differs & near_tie, shift)


def summed(found: Differences) -> Parity:
    return Parity(
        texts=len(found.shift),
        wrong=int(found.wrong.sum()),
        near_ties=int(found.near_tie.sum()),
        max_probability_error=float(found.shift.max()),
    )
