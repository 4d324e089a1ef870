"""Fit temperatures to logits and labels. Reads no file, asks no model; `calibrate` does.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") divides the logits by T: one T for all
labels of a softmax, or one per label for sigmoids. T minimises the log loss.

In all functions logits are (texts, labels) float64. truth is (texts,) int64 class ids, or for multi-label (texts,
labels) float64 of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from build_scripts.convert.parity import probabilities
from build_scripts.core.errors import ServingError

# Temperatures to search. An optimum at an end means that the texts decide nothing, such as a file without one error.
LOWEST, HIGHEST = 0.05, 20.0
# Halvings of the search range; the last step is far below the four digits that are kept.
HALVINGS = 50
# Texts with a label, and texts without it, that the label's own temperature needs; otherwise it takes the common one.
MINIMUM_EXAMPLES = 10
# Bins of the expected calibration error, as in Guo et al. and in `make evaluate`.
BINS = 15
# Logits closer than this tie: rounding of the divided weights may swap them.
ROUNDING = 1e-4


def choose(logits: Tensor, truth: Tensor, fitted: int) -> Tensor:
    """Temperatures, (1,) or (labels,), fitted on the first `fitted` texts; the others are held out.

    The first candidate that lowers the held-out log loss and keeps the class ids of all texts; otherwise 1.
    Raises ServingError if no temperature fits.
    """
    held_out = truth[fitted:]
    plain = log_loss(logits[fitted:], held_out)
    for temperatures in candidates(logits[:fitted], truth[:fitted]):
        scaled = logits / temperatures
        if log_loss(scaled[fitted:], held_out) < plain and not changed(logits, scaled):
            return temperatures
    return torch.ones(1, dtype=torch.float64)


def candidates(logits: Tensor, truth: Tensor) -> Iterator[Tensor]:
    """For multi-label a temperature per label; then a common one, which cannot change a class id."""
    common = minimum(lambda sharpness: slopes(logits, truth, sharpness).mean().view(1), 1)
    if not inside(common):
        raise ServingError(
            f"no temperature from {LOWEST:g} to {HIGHEST:g} fits the {len(logits)} texts of one half; a file without "
            "errors, or with wrong labels, cannot calibrate: use more texts like those of production"
        )
    if truth.ndim == 2:
        own = minimum(lambda sharpness: slopes(logits, truth, sharpness).mean(0), truth.size(1))
        positive = truth.sum(0)
        enough = torch.minimum(positive, len(truth) - positive) >= MINIMUM_EXAMPLES
        yield torch.where(enough & inside(own), own, common)
    yield common


def minimum(slope: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(count,): T of the lowest log loss, to four digits. The loss is convex in 1/T, so its slope is bisected."""
    low, high = (torch.full((count,), math.log(end), dtype=torch.float64) for end in (LOWEST, HIGHEST))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        sharper = slope((-middle).exp()) < 0
        low, high = torch.where(sharper, low, middle), torch.where(sharper, middle, high)
    return torch.tensor([float(f"{value:.4g}") for value in high.exp().tolist()], dtype=torch.float64)


def inside(temperatures: Tensor) -> Tensor:
    return (temperatures > 1.01 * LOWEST) & (temperatures < HIGHEST / 1.01)


def slopes(logits: Tensor, truth: Tensor, sharpness: Tensor) -> Tensor:
    """Derivative of each text's log loss with respect to sharpness = 1/T: (texts, 1), or (texts, labels)."""
    if truth.ndim == 2:
        return ((logits * sharpness).sigmoid() - truth) * logits
    mean = ((logits * sharpness).softmax(1) * logits).sum(1, keepdim=True)
    return mean - logits.gather(1, truth[:, None])


def log_loss(logits: Tensor, truth: Tensor) -> float:
    if truth.ndim == 2:
        return float(functional.binary_cross_entropy_with_logits(logits, truth))
    return float(functional.cross_entropy(logits, truth))


def calibration_error(logits: Tensor, truth: Tensor) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, weighted by the answers in each bin.

    For multi-label each yes or no is an answer.
    """
    found = probabilities(logits, "sigmoid" if truth.ndim == 2 else "softmax")
    if truth.ndim == 2:
        confidence, right = torch.maximum(found, 1 - found).flatten(), ((found >= 0.5) == truth.bool()).flatten()
    else:
        confidence, said = found.max(1)
        right = said == truth
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, confidence - right.double())
    return float(gaps.abs().sum() / len(confidence))


def changed(before: Tensor, after: Tensor) -> int:
    """Number of class ids that differ between two logits of the same texts, ties up to ROUNDING aside."""
    lost = before.max(1).values - before.gather(1, after.argmax(1, keepdim=True))[:, 0]
    return int((lost > ROUNDING).sum())
