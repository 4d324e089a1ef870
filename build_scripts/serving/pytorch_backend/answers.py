"""Metrics of answers: a counter per class id, and a histogram of the winning probability. They show drift.

A batch only appends its outputs to a queue. A thread sums them up and reports to Triton once a second, because one call
takes 16 us. The histogram is a family of counters with the label `le`, which Prometheus reads as a histogram: Triton's
own histograms take one value per call. Scores (one output) have no histogram: they are unbounded, and may be negative.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

FLUSH_INTERVAL_S = 1.0
# Inclusive upper bounds of the buckets, finer near certainty.
BUCKETS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
# Class ids with a separate series; all others share the series "other". Bounds the size of the metrics page.
MOST_CLASSES = 1000
# Request id of probes by the supervisor and `make health`; their answers are not counted.
PROBE_ID = "health"


class Answers:
    """Count a model's answers; nothing if Triton has no metrics (--allow-metrics=false). model: label of the series."""

    def __init__(self, model: str) -> None:
        self.labels = {"model": model}
        # OUTPUT__0 (rows, 1) int64 and OUTPUT__1 (rows, labels) fp32 of each answered request.
        self.waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self.ending = threading.Event()
        self.counters: dict[tuple[str, str], pb_utils.Metric] = {}
        # Keep the families alive: Triton drops one, with all its series, when Python collects the object.
        self.families = {
            name: pb_utils.MetricFamily(
                name=f"text_classifier_{name}", description=description, kind=pb_utils.MetricFamily.COUNTER
            )
            for name, description in (
                ("answers_total", "Answers by class id"),
                ("probability_bucket", "Answers whose winning probability is at most le"),
                ("probability_count", "Answers with a winning probability"),
                ("probability_sum", "Sum of winning probabilities"),
            )
        }
        self.thread = threading.Thread(target=self.run, name="answers", daemon=True)
        self.thread.start()

    def add(self, outputs: Sequence[np.ndarray]) -> None:
        """outputs: class ids (rows, 1) int64, probabilities (rows, labels) fp32."""
        self.waiting.append((outputs[0], outputs[1]))

    def run(self) -> None:
        while not self.ending.wait(FLUSH_INTERVAL_S):
            self.flush()

    def flush(self) -> None:
        """Pass to Triton what was added since the last flush."""
        batches = [self.waiting.popleft() for _ in range(len(self.waiting))]
        if not batches:
            return
        ids, counts = np.unique(np.concatenate([class_ids[:, 0] for class_ids, _ in batches]), return_counts=True)
        for class_id, count in zip(ids.tolist(), counts.tolist()):
            self.increment("answers_total", "class_id", str(class_id) if class_id < MOST_CLASSES else "other", count)
        if batches[0][1].shape[1] == 1:
            return
        winning = np.concatenate([probabilities.max(1) for _, probabilities in batches]).astype(np.float64)
        # Rounded, because 0.6 in fp32 is slightly more than 0.6.
        at_most = (np.round(winning, 6)[:, None] <= BUCKETS).sum(0)
        for bound, count in zip(BUCKETS.tolist(), at_most.tolist()):
            self.increment("probability_bucket", "le", f"{bound:g}", count)
        self.increment("probability_bucket", "le", "+Inf", len(winning))
        self.increment("probability_count", "", "", len(winning))
        self.increment("probability_sum", "", "", float(winning.sum()))

    def increment(self, family: str, label: str, value: str, by: float) -> None:
        if (family, value) not in self.counters:
            labels = {**self.labels, label: value} if label else self.labels
            self.counters[family, value] = self.families[family].Metric(labels=labels)
        if by:
            self.counters[family, value].increment(by)

    def close(self) -> None:
        """Flush, and release before Triton stops listening: releasing at interpreter shutdown crashed the stub."""
        self.ending.set()
        self.thread.join()
        self.flush()
        self.counters = {}
        self.families = {}
