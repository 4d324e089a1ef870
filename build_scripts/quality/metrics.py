"""Figures of a classifier on labelled texts, each headline figure with a 95 % interval. Reads no file, asks no model.

scikit-learn computes the metrics. Intervals: Wilson's for proportions, a Poisson bootstrap over the texts for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_curve, precision_recall_fscore_support

# Bins of the reliability diagram and of the expected calibration error (Guo et al. 2017 use 15).
BINS = 15
RESAMPLES, SEED = 400, 17
# Texts that the bootstrap weighs at once; bounds its memory.
CHUNK = 8192
ACCURACY_TARGETS = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class Figure:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Threshold:
    """Answers at or above `threshold` are right in `accuracy` of the cases; they are `coverage` of all."""

    target: float
    threshold: float
    coverage: float
    accuracy: float


@dataclass(frozen=True)
class Quality:
    """Everything that a report prints.

    per_class: (labels, 4) precision, recall, F1, support. confusion: (labels, labels) texts, true class by predicted
    class; None for multi-label. bins: (BINS, 3) mean confidence, share that is right, texts. coverage: (points, 3)
    threshold, coverage, accuracy. best_thresholds: (labels, 2) threshold and its F1; multi-label only.
    """

    texts: int
    headline: dict[str, Figure]
    per_class: np.ndarray
    confusion: np.ndarray | None
    bins: np.ndarray
    coverage: np.ndarray
    thresholds: list[Threshold]
    best_thresholds: np.ndarray | None


def measure(truth: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> Quality:
    """truth: (texts,) int64 class ids, or (texts, labels) bool for multi-label. probabilities: (texts, labels) float32.

    predicted: (texts,) int64 class ids as the server gave them; default: the most probable class.
    """
    multi_label = truth.ndim == 2
    labels = probabilities.shape[1]
    if multi_label:
        said = probabilities >= 0.5
        right = (said == truth).all(1)
        confidence, correct = _confidence(probabilities).ravel(), (said == truth).ravel()
        whole = _confidence(probabilities).min(1)
    else:
        predicted = probabilities.argmax(1) if predicted is None else predicted
        said = np.eye(labels, dtype=bool)[predicted]
        right = predicted == truth
        whole = confidence = probabilities[np.arange(len(predicted)), predicted]
        correct = right
    true_matrix = truth if multi_label else np.eye(labels, dtype=bool)[truth]
    per_class = np.stack(
        precision_recall_fscore_support(
            truth,
            said if multi_label else predicted,
            labels=None if multi_label else np.arange(labels),
            zero_division=0,
        ),
        axis=1,
    )
    bins = reliability(confidence, correct)
    coverage = coverage_curve(whole, right)
    headline = {
        "accuracy": wilson(int(right.sum()), len(right)),
        **f1_figures(true_matrix, said, per_class),
        "expected calibration error": calibration_error(confidence, correct, bins),
    }
    return Quality(
        texts=len(truth),
        headline=headline,
        per_class=per_class,
        confusion=None if multi_label else confusion_matrix(truth, predicted, labels=np.arange(labels)),
        bins=bins,
        coverage=coverage,
        thresholds=[found for target in ACCURACY_TARGETS if (found := threshold_for(coverage, target))],
        best_thresholds=best_thresholds(truth, probabilities) if multi_label else None,
    )


def wilson(right: int, texts: int) -> Figure:
    """A proportion with Wilson's score interval."""
    ends = binomtest(right, texts).proportion_ci(method="wilson")
    return Figure(right / texts, float(ends.low), float(ends.high))


def poisson_weights(texts: int):
    """Weights (RESAMPLES, chunk) of the texts, chunk by chunk, and the chunk's slice. The same ones at every call.

    A Poisson bootstrap draws each text Poisson(1) times, which needs no pass over all texts at once (Hanley and
    MacGibbon 2006).
    """
    generator = np.random.default_rng(SEED)
    for start in range(0, texts, CHUNK):
        chunk = slice(start, min(start + CHUNK, texts))
        yield chunk, generator.poisson(1.0, (RESAMPLES, chunk.stop - chunk.start)).astype(np.float32)


def interval(value: float, resampled: np.ndarray) -> Figure:
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Figure(value, float(low), float(high))


def f1_figures(truth: np.ndarray, said: np.ndarray, per_class: np.ndarray) -> dict[str, Figure]:
    """Macro F1 over the labels that occur in the file or in the answers, and F1 weighted by support.

    truth, said: (texts, labels) bool. per_class: as in Quality.
    """
    labels = truth.shape[1]
    both, answered, true = (np.zeros((RESAMPLES, labels)) for _ in range(3))
    for chunk, weights in poisson_weights(len(truth)):
        both += weights @ (truth[chunk] & said[chunk])
        answered += weights @ said[chunk]
        true += weights @ truth[chunk]
    f1 = 2 * both / np.maximum(answered + true, 1)
    seen = truth.any(0) | said.any(0)
    weighted = (f1 * true).sum(1) / np.maximum(true.sum(1), 1)
    support = per_class[:, 3]
    return {
        "macro F1": interval(float(per_class[seen, 2].mean()), f1[:, seen].mean(1)),
        "weighted F1": interval(float((per_class[:, 2] * support).sum() / max(support.sum(), 1)), weighted),
    }


def _confidence(probabilities: np.ndarray) -> np.ndarray:
    """How sure each yes or no of a multi-label answer is."""
    return np.maximum(probabilities, 1 - probabilities)


def reliability(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(BINS, 3): mean confidence, share that is right, answers, in bins of equal width. NaN where a bin is empty."""
    place = _bin_of(confidence)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=confidence, minlength=BINS) / count
        share = np.bincount(place, weights=correct, minlength=BINS) / count
    return np.stack([mean, share, count], axis=1)


def _bin_of(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: np.ndarray) -> Figure:
    """Expected calibration error: mean distance of confidence and accuracy, weighted by the answers in each bin."""
    gap = confidence.astype(np.float64) - correct
    place = _bin_of(confidence)
    sums, counts = np.zeros((RESAMPLES, BINS)), np.zeros((RESAMPLES, 1))
    for chunk, weights in poisson_weights(len(gap)):
        in_bin = np.zeros((chunk.stop - chunk.start, BINS), dtype=np.float32)
        in_bin[np.arange(len(in_bin)), place[chunk]] = gap[chunk]
        sums += weights @ in_bin
        counts += weights.sum(1, keepdims=True)
    filled = bins[:, 2] > 0
    value = float((np.abs(bins[filled, 0] - bins[filled, 1]) * bins[filled, 2]).sum() / bins[:, 2].sum())
    return interval(value, np.abs(sums / counts).sum(1))


def coverage_curve(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(points, 3): threshold, coverage, accuracy of the answers that are at least that sure; one point a threshold."""
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    kept = np.arange(1, len(sure) + 1)
    last = np.append(sure[1:] != sure[:-1], True)  # ties share one threshold
    return np.stack([sure[last], kept[last] / len(sure), hits[last] / kept[last]], axis=1)


def threshold_for(coverage: np.ndarray, target: float) -> Threshold | None:
    """The lowest threshold whose answers reach the accuracy; None if no threshold does."""
    reached = np.flatnonzero(coverage[:, 2] >= target)
    if not len(reached):
        return None
    threshold, share, accuracy = coverage[reached[-1]]
    return Threshold(target, float(threshold), float(share), float(accuracy))


def best_thresholds(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(labels, 2): for each label the threshold with the best F1, and that F1; NaN for labels without a text."""
    best = np.full((truth.shape[1], 2), np.nan)
    for label in np.flatnonzero(truth.any(0)):
        precision, recall, thresholds = precision_recall_curve(truth[:, label], probabilities[:, label])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        place = int(f1[:-1].argmax())
        best[label] = thresholds[place], f1[place]
    return best


def mcnemar(only_first: int, only_second: int) -> float:
    """p value of the exact McNemar test. only_first: texts that the first classifier alone gets right."""
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0


def difference(first: np.ndarray, second: np.ndarray) -> Figure:
    """Mean of second - first over the texts, paired, with its interval. first, second: (texts,) numbers."""
    gap = second.astype(np.float64) - first
    sums, counts = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for chunk, weights in poisson_weights(len(gap)):
        sums += weights @ gap[chunk]
        counts += weights.sum(1)
    return interval(float(gap.mean()), sums / counts)
