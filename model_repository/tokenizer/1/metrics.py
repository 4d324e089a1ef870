"""The tokenizer's metrics on Triton's endpoint: tokens per text, truncated texts, refused requests, what runs.

Requests add to numbers in memory. A thread passes them to Triton once a second, because one call takes 16 us.
"""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Callable

import triton_python_backend_utils as pb_utils
from encoder import Outputs

FLUSH_INTERVAL_S = 1.0
# Upper bounds of the histogram's buckets, inclusive: a full text of 128 tokens counts in "128".
BUCKETS = [8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192]
# overload: the classifier's queue is full. long_texts: the long texts' queue is full. invalid: a 400.
REASONS = ("overload", "long_texts", "invalid")


class Metrics:
    """model: label that distinguishes the series while a release loads a second tokenizer. info: labels of what runs.

    warn: called with a message if Triton has no metrics (--allow-metrics=false); then nothing is counted.
    """

    def __init__(self, model: str, info: dict[str, str], warn: Callable[[str], object]) -> None:
        self.lock = threading.Lock()
        self.tokens: list[int] = []
        self.counts: collections.Counter[str] = collections.Counter()
        labels = {"model": model}
        self.enabled = True
        try:
            # Triton drops a family, with all its series, once the object is collected. These objects never are, as the
            # thread below holds them: a release loads the model a second time under its name, both share the series,
            # and the one that ends first would leave the other writing to freed memory.
            self.families = {
                name: pb_utils.MetricFamily(name=f"text_classifier_{name}", description=description, kind=kind)
                for name, description, kind in (
                    ("tokens", "Tokens read of a text, special tokens included", pb_utils.MetricFamily.HISTOGRAM),
                    ("truncated_texts_total", "Texts with more tokens than are read", pb_utils.MetricFamily.COUNTER),
                    ("refused_requests_total", "Requests refused, by reason", pb_utils.MetricFamily.COUNTER),
                    ("info", "1 for each process that runs, 0 for one that has ended", pb_utils.MetricFamily.GAUGE),
                )
            }
            self.histogram = self.families["tokens"].Metric(labels=labels, buckets=BUCKETS)
            refused = self.families["refused_requests_total"]
            self.counters = {
                "truncated": self.families["truncated_texts_total"].Metric(labels=labels),
                **{reason: refused.Metric(labels={**labels, "reason": reason}) for reason in REASONS},
            }
            # With the process, because a release loads the model a second time under its name; both run for a while.
            self.info = self.families["info"].Metric(labels={**labels, "process": str(os.getpid()), **info})
            self.info.set(1)
        except pb_utils.TritonModelException as problem:
            warn(f"no metrics of tokens, truncated texts and refusals: {problem}")
            self.enabled = False
            return
        threading.Thread(target=self.run, name="metrics", daemon=True).start()

    def texts(self, outputs: Outputs) -> None:
        """Count texts by the encoder's TOKENS (n, 1) int32 and TRUNCATED (n, 1) bool."""
        if self.enabled:
            with self.lock:
                self.tokens += outputs["TOKENS"][:, 0].tolist()
                self.counts["truncated"] += int(outputs["TRUNCATED"].sum())

    def refused(self, reason: str) -> None:
        """reason: one of REASONS."""
        with self.lock:
            self.counts[reason] += 1

    def run(self) -> None:
        while True:
            time.sleep(FLUSH_INTERVAL_S)
            self.flush()

    def flush(self) -> None:
        """Pass to Triton what was counted since the last flush."""
        if not self.enabled:
            return
        with self.lock:
            tokens, self.tokens = self.tokens, []
            counts, self.counts = self.counts, collections.Counter()
        for number in tokens:
            self.histogram.observe(number)
        for name, number in counts.items():
            self.counters[name].increment(number)

    def end(self) -> None:
        """Pass on the rest. The series of `info` outlives the process."""
        self.flush()
        if self.enabled:
            self.info.set(0)
