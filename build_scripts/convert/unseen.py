"""Upper 95 % bounds on how much a precision changes the answers to new texts, measured on held-out texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from build_scripts.convert.parity import Differences

# One-sided confidence of every bound.
CONFIDENCE = 0.95
# The quantile of texts for which the largest shift of a probability is stated.
QUANTILE = 0.99
# The share of unseen texts that may break the gate's limits before `auto` leaves a precision out. Docs promise it.
BROKEN_LIMIT = 0.01


@dataclass(frozen=True)
class Unseen:
    """changed: class ids that differ, near ties included. broken: texts that break a limit of the gate.

    *_at_most: upper bound of the share of all texts. shift_at_most: upper bound of the QUANTILE of a text's shift.
    """

    texts: int
    changed: int
    changed_at_most: float
    broken: int
    broken_at_most: float
    shift_at_most: float
    within_promise: bool


def unseen(found: Differences, limit: float) -> Unseen:
    """The bounds, from the held-out texts. limit: the gate's limit for the shift of a probability."""
    texts = len(found.shift)
    changed = int((found.wrong | found.near_tie).sum())
    broken = int((found.wrong | (found.shift > limit)).sum())
    bound = share_at_most(broken, texts)
    return Unseen(
        texts=texts,
        changed=changed,
        changed_at_most=share_at_most(changed, texts),
        broken=broken,
        broken_at_most=bound,
        shift_at_most=shift_at_most(found.shift),
        within_promise=bound <= BROKEN_LIMIT,
    )


def share_at_most(count: int, texts: int) -> float:
    """Clopper and Pearson's upper bound: under any larger share, `count` or fewer occur in under 5 % of samples."""
    low, high = count / texts, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if probability_of_at_most(count, texts, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def shift_at_most(shifts: torch.Tensor) -> float:
    """An upper bound of the QUANTILE for any distribution: an order statistic, or 1 if the texts are too few."""
    texts = len(shifts)
    for place, shift in enumerate(shifts.sort().values.tolist()):
        if probability_of_at_most(place, texts, QUANTILE) >= CONFIDENCE:
            return shift
    return 1.0


def probability_of_at_most(count: int, of: int, share: float) -> float:
    """The binomial distribution: at most `count` successes in `of` trials, with probability `share` each."""
    if share >= 1:
        return float(count >= of)
    log, other = math.log(share) if share else -math.inf, math.log1p(-share)
    terms = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + (k * log if k else 0.0) + (of - k) * other
        for k in range(count + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
