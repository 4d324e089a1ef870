"""Fit a temperature to logits and labels. Reads no file, asks no model; `calibrate` does.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks") divides the logits by T, which
minimises the log loss. All labels share T, also for sigmoids. With a T per label, another label could become the most
probable one: logits 2 and 3 divided by 1 and 2 swap places. One T keeps CLASS_ID for every text, seen or unseen.

In all functions logits are (texts, labels) float64. truth is (texts,) int64 class ids, or for multi-label (texts,
labels) float64 of 0 and 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from build_scripts.convert.parity import probabilities
from build_scripts.core.errors import ServingError

# Temperatures to search. An optimum at an end means that the texts decide nothing, such as a file without one error.
LOWEST, HIGHEST = 0.05, 20.0
# Halvings of the search range; the last step is far below the four digits that are kept.
HALVINGS = 50
# Bins of the expected calibration error, as in Guo et al. and in `make evaluate`.
BINS = 15
# Logits closer than this tie: rounding of the divided weights may swap them.
ROUNDING = 1e-4


def choose(logits: Tensor, truth: Tensor, fitted: int) -> float:
    """The temperature fitted on the first `fitted` texts; 1 if it does not lower the log loss of the others.

    Raises ServingError if no temperature fits.
    """
    temperature = fit(logits[:fitted], truth[:fitted])
    plain, held_out = logits[fitted:], truth[fitted:]
    return temperature if log_loss(plain / temperature, held_out) < log_loss(plain, held_out) else 1.0


def fit(logits: Tensor, truth: Tensor) -> float:
    """T of the lowest log loss, to four digits. The loss is convex in 1/T, so its slope is bisected."""
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(logits, truth, math.exp(-middle)) < 0 else (middle, high)
    temperature = float(f"{math.exp(high):.4g}")
    if not 1.01 * LOWEST < temperature < HIGHEST / 1.01:
        raise ServingError(
            f"no temperature from {LOWEST:g} to {HIGHEST:g} fits the {len(logits)} texts of one half; a file without "
            "errors, or with wrong labels, cannot calibrate: use more texts like those of production"
        )
    return temperature


def slope(logits: Tensor, truth: Tensor, sharpness: float) -> float:
    """Derivative of the mean log loss with respect to sharpness = 1/T."""
    if truth.ndim == 2:
        return float((((logits * sharpness).sigmoid() - truth) * logits).mean())
    mean = ((logits * sharpness).softmax(1) * logits).sum(1)
    return float((mean - logits.gather(1, truth[:, None])[:, 0]).mean())


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
