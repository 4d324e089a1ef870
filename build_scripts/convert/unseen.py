"""State what an unseen text may lose, with upper 95 % bounds, from texts that no gate has seen."""

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
    """limit: the gate's, for the shift of a probability."""
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
    """The upper bound of Clopper and Pearson: a larger share would give `count` or fewer in under 5 % of samples."""
    low, high = count / texts, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if probability_of_at_most(count, texts, middle) > 1 - CONFIDENCE else (low, middle)
    return high


def shift_at_most(shifts: torch.Tensor) -> float:
    """The order statistic above the QUANTILE with CONFIDENCE, for any distribution; 1 with too few texts."""
    texts = len(shifts)
    for place, shift in enumerate(shifts.sort().values.tolist()):
        if probability_of_at_most(place, texts, QUANTILE) >= CONFIDENCE:
            return shift
    return 1.0


def probability_of_at_most(count: int, of: int, share: float) -> float:
    """The binomial distribution's: at most `count` of `of` with probability `share` each."""
    if share >= 1:
        return float(count >= of)
    log, other = math.log(share) if share else -math.inf, math.log1p(-share)
    terms = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + (k * log if k else 0.0) + (of - k) * other
        for k in range(count + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
