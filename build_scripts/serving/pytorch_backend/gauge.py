"""Gauge of requests that the backend holds and has not started; Triton's own gauge counts them as started.

The tokenizer's admission adds this gauge to Triton's.
"""

from __future__ import annotations

import os
import time

import triton_python_backend_utils as pb_utils

# Minimum interval between updates. Zero is shown immediately.
INTERVAL_S = 0.005


class Gauge:
    """Gauge of one instance. Keeps the family alive: Triton drops a metric when Python collects its family.

    A release loads the model a second time under its name. Two processes with the same labels would share one metric,
    which Triton frees when the first of them ends; the next value of the other is then written to freed memory, and
    tritonserver crashes. So the process id is a label.
    """

    def __init__(self, model: str) -> None:
        self.family = pb_utils.MetricFamily(
            name="text_classifier_held_requests",
            description="Requests that the backend took from Triton's queue and has not begun to compute",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.metric = self.family.Metric(labels={"model": model, "process": str(os.getpid())})
        self.shown, self.next = 0, 0.0

    def show(self, number: int) -> None:
        now = time.monotonic()
        if number != self.shown and (number == 0 or now >= self.next):
            self.metric.set(number)
            self.shown, self.next = number, now + INTERVAL_S

    def close(self) -> None:
        """Release before Triton stops listening: releasing at interpreter shutdown crashed the stub."""
        self.metric = self.family = None
