"""What the tokenizer shows on Triton's own metrics endpoint: tokens a text, texts that were cut, requests refused.

A request only adds to numbers here; a thread hands them to Triton once a second, because that takes 16 us a number.
"""

import collections
import threading
import time

import triton_python_backend_utils as pb_utils

FLUSH_EVERY_S = 1.0
# Up to the longest max_length. `le` is inclusive: a full text of 128 tokens counts in "128".
BUCKETS = [8, 16, 32, 64, 128, 256, 384, 512]
# overload: too many requests wait for the classifier. long_texts: too many bytes wait to be tokenized. invalid: a 400.
REASONS = ("overload", "long_texts", "invalid")


class Metrics:
    """model: the name by which the series are told apart while a release loads a second tokenizer.

    warn: called with a message if Triton has no metrics (--allow-metrics=false); then nothing is counted.
    """

    def __init__(self, model, warn):
        self.lock = threading.Lock()
        self.tokens = []
        self.counted = collections.Counter()
        labels = {"model": model}
        try:
            # Triton forgets a family, with all its series, once the object is gone.
            self.families = {
                name: pb_utils.MetricFamily(name=f"text_classifier_{name}", description=description, kind=kind)
                for name, description, kind in (
                    ("tokens", "Tokens read of a text, special tokens included", pb_utils.MetricFamily.HISTOGRAM),
                    ("truncated_texts_total", "Texts with more tokens than are read", pb_utils.MetricFamily.COUNTER),
                    ("refused_requests_total", "Requests refused, by reason", pb_utils.MetricFamily.COUNTER),
                )
            }
            self.histogram = self.families["tokens"].Metric(labels=labels, buckets=BUCKETS)
            refused = self.families["refused_requests_total"]
            self.counters = {
                "truncated": self.families["truncated_texts_total"].Metric(labels=labels),
                **{reason: refused.Metric(labels={**labels, "reason": reason}) for reason in REASONS},
            }
        except pb_utils.TritonModelException as problem:
            warn(f"no metrics of tokens, truncated texts and refusals: {problem}")
            self.texts = self.refused = self.flush = lambda *_: None
            return
        threading.Thread(target=self.run, name="metrics", daemon=True).start()

    def texts(self, outputs):
        """outputs: what the encoder gave, TOKENS int32 and TRUNCATED bool, both (n, 1)."""
        with self.lock:
            self.tokens += outputs["TOKENS"][:, 0].tolist()
            self.counted["truncated"] += int(outputs["TRUNCATED"].sum())

    def refused(self, reason):
        """reason: one of REASONS."""
        with self.lock:
            self.counted[reason] += 1

    def run(self):
        """The thread."""
        while True:
            time.sleep(FLUSH_EVERY_S)
            self.flush()

    def flush(self):
        """Hand over what came since the last time."""
        with self.lock:
            tokens, self.tokens = self.tokens, []
            counted, self.counted = self.counted, collections.Counter()
        for number in tokens:
            self.histogram.observe(number)
        for name, number in counted.items():
            self.counters[name].increment(number)
