"""Calibrate a checkpoint's probabilities: fold a temperature, fitted on labelled texts, into its last layer.

One half of the texts fits the temperature, and the other half gives the metrics. The weights and bias of the last layer
are divided in place. So the export agrees with the gate's reference, and serving costs no more.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.convert.families import encoder_parts
from build_scripts.convert.parity import probabilities
from build_scripts.convert.temperature import ROUNDING, calibration_error, changed, choose, log_loss
from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import DEFAULT_COLUMNS, BadRow, Columns, Row, class_ids_of, read_labelled

# Minimum number of distinct texts. With 10 per half the metrics are rough; with fewer they are meaningless.
MINIMUM_TEXTS = 20


@dataclass(frozen=True)
class Labelled:
    """Texts, the fitted half first, and their labels as `temperature` takes them. fitted: texts in the first half."""

    texts: list[Text]
    truth: Tensor
    fitted: int


def calibrate(checkpoint: Checkpoint, file: Path, columns: Columns = DEFAULT_COLUMNS) -> dict:
    """Divide the model's last layer by the fitted temperature, in place; returns the manifest's facts about it.

    Raises ServingError if the last layer is unknown, if the file cannot be used, or if a class id would change.
    """
    if checkpoint.score:
        raise ServingError("CALIBRATE: this checkpoint has one label and gives a score; build without CALIBRATE")
    if checkpoint.multi_label and checkpoint.documents and checkpoint.documents.pooling == "mean":
        raise ServingError(
            "CALIBRATE: with DOCUMENTS=mean the probabilities of a multi-label classifier are averaged over windows, "
            "so a temperature in the last layer cannot scale them; build without CALIBRATE, or with DOCUMENTS=max"
        )
    layer = last_layer(checkpoint)
    labelled = read(checkpoint, file, columns)
    plain = logits_of(checkpoint, labelled.texts, "labelled texts")
    try:
        temperature = choose(plain, labelled.truth, labelled.fitted)
    except ServingError as error:
        raise ServingError(f"CALIBRATE={file}: {error}") from error
    with torch.no_grad():
        fold(layer, temperature)
    plain, truth = plain[labelled.fitted :], labelled.truth[labelled.fitted :]
    found = logits_of(checkpoint, labelled.texts[labelled.fitted :], "held-out texts")
    refuse_other_answers(checkpoint, plain, plain / temperature, found)

    def figures(figure: Callable[[Tensor, Tensor], float]) -> dict[str, float]:
        return {"before": round(figure(plain, truth), 4), "after": round(figure(found, truth), 4)}

    return {
        "value": temperature,
        "fitted_texts": labelled.fitted,
        "held_out_texts": len(found),
        "expected_calibration_error": figures(calibration_error),
        "log_loss": figures(log_loss),
    }


def last_layer(checkpoint: Checkpoint) -> nn.Linear:
    """The layer whose outputs are the logits. Raises ServingError for an architecture whose modules are not known."""
    parts = encoder_parts(checkpoint.model, checkpoint.token_types)
    if parts is None:
        raise ServingError(
            f"CALIBRATE: this {checkpoint.model.config.model_type} is traced, so its last layer is not known; build "
            "without CALIBRATE"
        )
    return parts.classifier


def fold(layer: nn.Linear, temperature: float) -> None:
    """Divide weights and bias."""
    layer.weight.div_(temperature)
    if layer.bias is not None:
        layer.bias.div_(temperature)


def read(checkpoint: Checkpoint, file: Path, columns: Columns) -> Labelled:
    """Split the file by the digests of the texts: no line's place and no repetition decides in which half a text is."""
    rows: list[Row] = []
    bad: list[BadRow] = []
    for row in read_labelled(file, columns):
        if isinstance(row, Row):
            rows.append(row)
        else:
            bad.append(row)
    if bad:
        print(f"CALIBRATE: left out {len(bad)} bad rows; the first is line {bad[0].line}: {bad[0].reason}", flush=True)
    rows.sort(key=digest_of)
    digests = [digest_of(row) for row in rows]
    different = sorted(set(digests))
    if len(different) < MINIMUM_TEXTS:
        raise ServingError(
            f"CALIBRATE={file} holds {len(different)} different labelled texts ({len(bad)} bad rows); at least "
            f"{MINIMUM_TEXTS} are required, and 1000 are recommended"
        )
    fitted = bisect.bisect_left(digests, different[len(different) // 2])
    return Labelled([row.text for row in rows], truth_of(checkpoint, rows), fitted)


def digest_of(row: Row) -> bytes:
    return hashlib.sha256(repr(row.text).encode("utf-8")).digest()


def truth_of(checkpoint: Checkpoint, rows: Sequence[Row]) -> Tensor:
    ids = [class_ids_of(row, checkpoint.labels, multi_label=checkpoint.multi_label) for row in rows]
    if not checkpoint.multi_label:
        return torch.tensor([one[0] for one in ids])
    truth = torch.zeros(len(ids), len(checkpoint.labels), dtype=torch.float64)
    for row, own in zip(truth, ids):
        row[own] = 1
    return truth


def logits_of(checkpoint: Checkpoint, texts: Sequence[Text], what: str) -> Tensor:
    """(texts, labels) float64: plain Hugging Face, one text at a time."""
    with torch.inference_mode():
        asked = tqdm(texts, desc=f"Hugging Face's logits of {what}", unit="text", disable=None, leave=False)
        rows = [checkpoint.logits(text).tolist() for text in asked]
    return torch.tensor(rows, dtype=torch.float64)


def refuse_other_answers(checkpoint: Checkpoint, plain: Tensor, expected: Tensor, found: Tensor) -> None:
    """Raise ServingError unless the folded model gives the expected probabilities and the plain model's class ids."""
    wanted, given = (probabilities(logits, checkpoint.activation) for logits in (expected, found))
    error, other = float((wanted - given).abs().max()), changed(plain, found)
    if error > ROUNDING or other:
        raise ServingError(
            f"CALIBRATE: with the temperature in the last layer of this {checkpoint.model.config.model_type}, "
            f"{other} of {len(found)} class ids change and a probability is off by {error:.2g}; build without CALIBRATE"
        )
