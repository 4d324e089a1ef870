"""Metric of requests that the backend holds: Triton's own gauge counts them as started.

The tokenizer's admission adds this gauge to Triton's.
"""

from __future__ import annotations

import time

import triton_python_backend_utils as pb_utils

# Shortest interval between updates. Zero is always shown at once.
INTERVAL_S = 0.005


class Gauge:
    """Both objects live as long as the model: Triton drops a metric whose family is collected."""

    def __init__(self, model: str, instance: str) -> None:
        self.family = pb_utils.MetricFamily(
            name="text_classifier_held_requests",
            description="Requests that the backend took from Triton's queue and has not begun to compute",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.metric = self.family.Metric(labels={"model": model, "instance": instance})
        self.shown, self.next = 0, 0.0

    def show(self, number: int) -> None:
        now = time.monotonic()
        if number != self.shown and (number == 0 or now >= self.next):
            self.metric.set(number)
            self.shown, self.next = number, now + INTERVAL_S

    def close(self) -> None:
        """Release before Triton stops listening: releasing at interpreter shutdown crashed the stub."""
        self.metric = self.family = None
