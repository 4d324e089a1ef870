"""Refuse requests at once while too many wait for the classifier.

Triton has a queue limit of its own, `max_queue_size`. With it, or with a queue timeout, its dynamic batcher no longer
prepares a batch while another is computed, and sleeps up to 500 ms over requests that come in at that moment: on 2.51,
with 4 to 16 clients, up to one request in a hundred (see `DynamicBatchScheduler` in triton-inference-server/core). So
the limit is kept here, one step earlier, with the help of Triton's own gauge of waiting requests.
"""

import contextlib
import http.client
import re
import threading
import time

# How many requests wait, by classifier.
WAITING = r'^nv_inference_pending_request_count{{(?:.*,)?model="{classifier}".*}} ([\d.e+]+)'
# A backend that takes requests out of Triton's queue and holds them back shows here how many; it need not exist.
HELD = r'^text_classifier_held_requests{{(?:.*,)?model="{classifier}".*}} ([\d.e+]+)'
# What a release adds to the names of the models that it loads beside the live ones.
RELEASE = "_[0-9a-f]{12}"
# The gauge costs 1 ms to read; at the limit, hardly any room comes free in this time.
READ_EVERY_S = 0.01
# A request waits so long for a reading. One that takes longer, as on a busy machine, is of use to those that follow.
PATIENCE_S = 0.005
# Until a reading is so old, the room that it left is believed while the next one is under way.
OLD_S = 0.5
# When the gauge cannot be read, it is tried again after this time. The first request may come before the metrics do.
RETRY_AFTER_S = 1.0
TIMEOUT_S = 1.0


class Admission:
    """Reads the gauge, and again after so many requests as it then left room for. A thread reads, so that metrics which
    hang hold nobody up.

    limit: requests that may wait. address: host:port of Triton's metrics. tokenizer: the model's name, which tells the
    classifier's. warn: called with a message when the metrics cannot be read, once until they can.
    """

    def __init__(self, limit, address, tokenizer, warn):
        self.limit = limit
        self.address = address
        # The live one and, for a moment, that of a release: not another name's, which has a limit of its own.
        classifier = re.sub(f"{RELEASE}$", "", tokenizer).replace("tokenizer", "classifier", 1)
        gauges = [gauge.format(classifier=f"{classifier}(?:{RELEASE})?") for gauge in (WAITING, HELD)]
        self.waiting, self.held = (re.compile(gauge, re.MULTILINE) for gauge in gauges)
        self.warn = warn
        self.room = self.left = 0  # now, and when the gauge was last read
        self.read_at = None  # when the gauge was last read; None if it could not be
        self.next_reading = 0.0
        self.failures = 0
        self.lock = threading.Lock()
        self.reading = None

    def admit(self, count):
        """How many of `count` requests may go on to the model; the others are to be refused."""
        if self.room < count:
            self.refresh()
        with self.lock:
            late = self.reading is not None and time.monotonic() - (self.read_at or 0.0) > OLD_S
            if self.read_at is None or late:
                return count
            # A busy server may serve all that a reading left room for before the next one is done, without a queue. So
            # the last one's room counts once more meanwhile; more than twice the limit never waits.
            spare = self.left if self.reading is not None else 0
            admitted = min(count, max(self.room + spare, 0))
            self.room -= admitted
            return admitted

    def refresh(self):
        """Have the gauge read, unless that was done just now; wait for it for a moment."""
        with self.lock:
            if self.reading is not None or time.monotonic() < self.next_reading:
                return
            self.reading = reading = threading.Thread(target=self.read, name="admission", daemon=True)
        reading.start()
        reading.join(PATIENCE_S)

    def read(self):
        """Set the room to what the gauge shows; without the gauge nobody is refused."""
        try:
            waiting, problem = self.count_waiting(), None
        except (OSError, http.client.HTTPException, ValueError) as error:
            waiting, problem = 0, error
        now = time.monotonic()
        with self.lock:
            self.reading = None
            if problem is None:
                self.failures, self.read_at = 0, now
                self.room = self.left = max(self.limit - waiting, 0)
                self.next_reading = now + READ_EVERY_S
                return
            self.failures, self.room, self.read_at = self.failures + 1, 0, None
            self.next_reading = now + RETRY_AFTER_S
        if self.failures == 2:
            self.warn(f"no request is refused for overload: {self.address}/metrics cannot be read ({problem!r})")

    def count_waiting(self):
        """Requests that wait for a classifier. Raises OSError, HTTPException or ValueError if nothing says how many."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/metrics")
            with connection.getresponse() as response:  # closed even if it is not read
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                text = read_within(TIMEOUT_S, response).decode("utf-8")
        waiting = self.waiting.findall(text)
        if not waiting:
            raise ValueError("no gauge nv_inference_pending_request_count of a classifier")
        return sum(map(int, map(float, waiting + self.held.findall(text))))


def read_within(seconds, response):
    """The body. Raises TimeoutError if it does not end, as that of a service which streams, or comes drop by drop."""
    body, end = b"", time.monotonic() + seconds
    while part := response.read1(1 << 16):
        body += part
        if time.monotonic() > end:
            raise TimeoutError(f"an answer that goes on for over {seconds:g} s")
    return body
