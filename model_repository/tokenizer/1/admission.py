"""Refuse requests at once while too many wait for the classifier.

Triton has a queue limit of its own, `max_queue_size`. With it, or with a queue timeout, its dynamic batcher no longer
prepares a batch while another is computed, and sleeps up to 500 ms over requests that come in at that moment: on 2.51,
with 4 to 16 clients, up to one request in a hundred (see `DynamicBatchScheduler` in triton-inference-server/core). So
the limit is kept here, one step earlier, with the help of Triton's own gauge of waiting requests.
"""

import contextlib
import http.client
import re
import time

# A release loads a second classifier for a moment; its name begins the same.
WAITING = re.compile(r'^nv_inference_pending_request_count{.*model="classifier.*} (\d+)', re.MULTILINE)
# The gauge costs 1 ms to read; at the limit, hardly any room comes free in this time.
READ_EVERY_S = 0.01
# When the gauge cannot be read, it is tried again after this time. The first request may come before the metrics do.
RETRY_AFTER_S = 1.0
TIMEOUT_S = 1.0


class Admission:
    """Counts down the room that the gauge last showed, so that it is read once in `limit` requests.

    limit: requests that may wait. address: host:port of Triton's metrics. warn: called with a message when they cannot
    be read.
    """

    def __init__(self, limit, address, warn):
        self.limit = limit
        self.address = address
        self.warn = warn
        self.room = 0
        self.next_reading = 0.0
        self.failures = 0

    def admit(self, count):
        """How many of `count` requests may go on to the model; the others are to be refused."""
        if self.room < count and time.monotonic() >= self.next_reading:
            self.read()
        if self.failures:
            return count
        admitted = min(count, self.room)
        self.room -= admitted
        return admitted

    def read(self):
        """Set the room to what the gauge shows; without the gauge nobody is refused."""
        try:
            with contextlib.closing(http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)) as connection:
                connection.request("GET", "/metrics")
                waiting = sum(map(int, WAITING.findall(connection.getresponse().read().decode())))
            self.failures, self.room, pause = 0, max(self.limit - waiting, 0), READ_EVERY_S
        except (OSError, http.client.HTTPException) as problem:
            self.failures, self.room, pause = self.failures + 1, 0, RETRY_AFTER_S
            if self.failures == 2:
                self.warn(f"no request is refused for overload: {self.address}/metrics cannot be read ({problem!r})")
        self.next_reading = time.monotonic() + pause
