"""Metrics of answers: a counter per class id, and a histogram of the winning probability. They show drift.

Requests only append their outputs to a queue, because reducing them there cost a lone client 0.05 to 0.1 ms. A thread
adds them up and reports to Triton every five seconds, which takes milliseconds. The histogram is a family of counters
with the label `le`, which Prometheus reads as a histogram: Triton's own histograms take one value per call.

A model with one label gives scores, and has no such metrics: scores are unbounded and may be negative.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb_utils

FLUSH_INTERVAL_S = 5.0
# Larger probabilities are reduced at once, which bounds the queue's memory to some MiB.
KEPT_BYTES = 4096
# Inclusive upper bounds of the buckets, finer near certainty.
BUCKETS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
# Models with more classes have only the histogram. Bounds the size of the metrics page.
MOST_CLASSES = 200
# Request id of probes by the supervisor and `make health`; their answers are not counted.
PROBE_ID = "health"
FAMILIES = {
    "answers_total": "Answers by class id",
    "probability_bucket": "Answers whose winning probability is at most le",
    "probability_count": "Answers with a winning probability",
    "probability_sum": "Sum of winning probabilities",
}


class Answers:
    """The metrics of one instance. Keeps families and counters alive: Triton drops what Python collects.

    The label `process` keeps each process's counters apart, as in `gauge`. A candidate that a release loads as
    `<model>_<release>` counts under the model's name.
    """

    def __init__(self, model: str, release: str) -> None:
        self.labels = {"model": model.removesuffix(f"_{release}"), "release": release, "process": str(os.getpid())}
        # Of each answered request: class ids (rows, 1), and probabilities (rows, labels) or their maxima (rows,).
        self.waiting: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self.families: dict[str, pb_utils.MetricFamily] = {}
        self.counters: dict[tuple[str, ...], pb_utils.Metric] = {}
        self.classes = 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, name="answers", daemon=True)
        self.thread.start()

    def add(self, outputs: Sequence[np.ndarray]) -> None:
        """outputs: class ids (rows, 1) int64, probabilities (rows, labels) fp32."""
        class_ids, probabilities = outputs
        self.classes = probabilities.shape[1]
        if self.classes > 1 and not self.ending.is_set():
            if probabilities.nbytes > KEPT_BYTES:
                probabilities = probabilities.max(1)
            self.waiting.append((class_ids, probabilities))

    def run(self) -> None:
        try:
            while not self.ending.wait(FLUSH_INTERVAL_S):
                self.flush()
        except pb_utils.TritonModelException as problem:  # --allow-metrics=false
            self.ending.set()
            self.waiting.clear()
            pb_utils.Logger.log_warn(f"no metrics of answers: {problem}")

    def flush(self) -> None:
        """Pass to Triton what was added since the last flush."""
        batches = [self.waiting.popleft() for _ in range(len(self.waiting))]
        if not batches:
            return
        class_ids = np.concatenate([found for found, _ in batches])
        large = [found for _, found in batches if found.ndim == 1]
        small = [found for _, found in batches if found.ndim == 2]
        winning = np.concatenate([*large, *([np.concatenate(small).max(1)] if small else [])])
        if self.classes <= MOST_CLASSES:
            for class_id, count in zip(*(found.tolist() for found in np.unique(class_ids, return_counts=True))):
                self.increment("answers_total", count, class_id=str(class_id))
        # Rounded, because 0.6 in fp32 is slightly more than 0.6.
        at_most = (np.round(winning.astype(np.float64), 6)[:, None] <= BUCKETS).sum(0)
        for bound, count in zip(BUCKETS.tolist(), at_most.tolist()):
            self.increment("probability_bucket", count, le=f"{bound:g}")
        self.increment("probability_bucket", len(winning), le="+Inf")
        self.increment("probability_count", len(winning))
        self.increment("probability_sum", float(winning.sum(dtype=np.float64)))

    def increment(self, name: str, by: float, **label: str) -> None:
        """Also creates a counter that stays 0: PromQL's histograms need every bucket."""
        key = name, *label.values()
        if key not in self.counters:
            if name not in self.families:
                self.families[name] = pb_utils.MetricFamily(
                    name=f"text_classifier_{name}", description=FAMILIES[name], kind=pb_utils.MetricFamily.COUNTER
                )
            self.counters[key] = self.families[name].Metric(labels={**self.labels, **label})
        if by:
            self.counters[key].increment(by)

    def close(self) -> None:
        """Flush, and release before Triton stops listening: releasing at interpreter shutdown crashed the stub."""
        if not self.ending.is_set():
            self.ending.set()
            self.thread.join()
            with contextlib.suppress(pb_utils.TritonModelException):  # as in `run`
                self.flush()
        self.counters = {}
        self.families = {}
