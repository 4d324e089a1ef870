"""Figures equal scikit-learn's own, and their intervals contain what they estimate."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn import metrics as oracle

from build_scripts.quality import metrics

RNG = np.random.default_rng(5)


def single_label(texts: int = 700, labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """truth, probabilities: a model that is right in about two thirds of the cases; label 5 never occurs."""
    truth = RNG.integers(0, labels - 1, texts)
    logits = RNG.normal(size=(texts, labels)) + 2.0 * np.eye(labels)[truth]
    exp = np.exp(logits)
    return truth, (exp / exp.sum(1, keepdims=True)).astype(np.float32)


def multi_label(texts: int = 600, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    truth = RNG.random((texts, labels)) < np.array([0.5, 0.3, 0.1, 0.0])[:labels]
    logits = RNG.normal(size=truth.shape) + 3.0 * truth - 1.5
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


def test_single_label_figures_equal_scikit_learns():
    truth, probabilities = single_label()
    predicted = probabilities.argmax(1)
    quality = metrics.measure(truth, probabilities)
    present = sorted({*truth, *predicted})
    assert quality.headline["accuracy"].value == pytest.approx(oracle.accuracy_score(truth, predicted))
    macro = oracle.f1_score(truth, predicted, average="macro", labels=present)
    weighted = oracle.f1_score(truth, predicted, average="weighted")
    assert quality.headline["macro F1"].value == pytest.approx(macro)
    assert quality.headline["weighted F1"].value == pytest.approx(weighted)
    assert (quality.confusion == oracle.confusion_matrix(truth, predicted, labels=range(6))).all()
    report = oracle.classification_report(truth, predicted, labels=range(6), output_dict=True, zero_division=0)
    names = ("precision", "recall", "f1-score", "support")
    for class_id, values in enumerate(quality.per_class):
        assert values == pytest.approx([report[str(class_id)][name] for name in names])


def test_multi_label_figures_equal_scikit_learns():
    truth, probabilities = multi_label()
    said = probabilities >= 0.5
    quality = metrics.measure(truth, probabilities)
    assert quality.headline["accuracy"].value == pytest.approx(oracle.accuracy_score(truth, said))
    present = [label for label in range(truth.shape[1]) if (truth | said)[:, label].any()]
    macro = oracle.f1_score(truth, said, average="macro", labels=present, zero_division=0)
    assert quality.headline["macro F1"].value == pytest.approx(macro)
    weighted = oracle.f1_score(truth, said, average="weighted", zero_division=0)
    assert quality.headline["weighted F1"].value == pytest.approx(weighted)
    assert quality.confusion is None


def test_calibration_error_equals_its_definition():
    truth, probabilities = single_label()
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    quality = metrics.measure(truth, probabilities)
    edges = np.linspace(0, 1, metrics.BINS + 1)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - (predicted == truth)[inside].mean())
    assert quality.headline["expected calibration error"].value == pytest.approx(expected, abs=1e-6)


def test_wilson_equals_the_textbook():
    figure = metrics.wilson(8, 10)
    assert (figure.low, figure.high) == pytest.approx((0.4901, 0.9433), abs=1e-4)


def test_intervals_hold_their_values_and_shrink_with_more_texts():
    few, many = (metrics.measure(*single_label(texts)).headline for texts in (200, 9000))
    for name, figure in (few | many).items():
        assert figure.low <= figure.high
        assert name == "expected calibration error" or figure.low <= figure.value <= figure.high
    assert many["macro F1"].high - many["macro F1"].low < few["macro F1"].high - few["macro F1"].low


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    """Macro F1 of many samples from one population: the population's own value lies in most intervals."""
    population = single_label(40_000)
    value = metrics.measure(*population).headline["macro F1"].value
    inside = 0
    for start in range(0, 24_000, 400):
        part = metrics.measure(*(array[start : start + 400] for array in population)).headline["macro F1"]
        inside += part.low <= value <= part.high
    assert inside >= 50  # of 60; 57 are expected


def test_thresholds_keep_the_most_answers_that_reach_the_accuracy():
    truth, probabilities = single_label(3000)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    for found in metrics.measure(truth, probabilities).thresholds:
        kept = confidence >= found.threshold
        assert right[kept].mean() == pytest.approx(found.accuracy)
        assert found.accuracy >= found.target
        assert kept.mean() == pytest.approx(found.coverage)
        lower = [right[confidence >= other].mean() for other in np.unique(confidence[confidence < found.threshold])]
        assert not any(accuracy >= found.target for accuracy in lower)


def test_equal_confidences_share_one_threshold():
    curve = metrics.coverage_curve(np.array([0.9, 0.9, 0.5]), np.array([True, False, True]))
    assert curve.tolist() == [[0.9, 2 / 3, 0.5], [0.5, 1.0, 2 / 3]]


def test_best_thresholds_reach_the_best_f1_of_all():
    truth, probabilities = multi_label(150)
    for label, (threshold, f1) in enumerate(metrics.measure(truth, probabilities).best_thresholds):
        if not truth[:, label].any():
            assert np.isnan(threshold)
            continue
        scores = probabilities[:, label]
        best = max(oracle.f1_score(truth[:, label], scores >= one, zero_division=0) for one in np.unique(scores))
        assert f1 == pytest.approx(best)
        assert oracle.f1_score(truth[:, label], scores >= threshold) == pytest.approx(best)


def test_mcnemar_knows_a_coin_from_a_trend():
    assert metrics.mcnemar(0, 0) == 1.0
    assert metrics.mcnemar(10, 10) == pytest.approx(1.0)
    assert metrics.mcnemar(0, 10) == pytest.approx(2 * 0.5**10)


def test_a_paired_difference_is_of_the_same_texts():
    first, second = np.array([True] * 60 + [False] * 40), np.array([True] * 90 + [False] * 10)
    found = metrics.difference(first, second)
    assert found.value == pytest.approx(0.3)
    assert 0.2 < found.low < 0.3 < found.high < 0.4
