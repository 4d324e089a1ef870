"""Refuse requests at once while too many wait for the classifier.

Triton's own limit, `max_queue_size`, makes its dynamic batcher sleep up to 500 ms over requests that arrive while a
batch is computed: up to one request in a hundred with 4 to 16 clients on 2.51. The same holds for a queue timeout. So
the limit is enforced here, one step earlier, from Triton's gauge of waiting requests.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Callable

# Waiting requests of a classifier, in Triton's metrics.
WAITING = r'^nv_inference_pending_request_count{{(?:.*,)?model="{classifier}".*}} ([\d.e+]+)'
# Requests that a backend took out of Triton's queue but has not started. Only the embedded backend has this gauge.
HELD = r'^text_classifier_held_requests{{(?:.*,)?model="{classifier}".*}} ([\d.e+]+)'
# A release loads its models under names with this suffix, beside the live ones.
RELEASE = "_[0-9a-f]{12}"
# Shortest interval between readings. One costs 1 ms, and little room appears in less time.
READ_INTERVAL_S = 0.01
# A request waits this long for a reading. A later reading serves later requests.
WAIT_S = 0.005
# While a reading is in progress, the last one is trusted up to this age.
STALE_S = 0.5
# Delay before the next attempt after a failed reading. The first request may arrive before the metrics do.
RETRY_AFTER_S = 1.0
TIMEOUT_S = 1.0


class Admission:
    """Admits requests while the queue has room; reads the gauge again once the room is used up.

    A thread reads, so that metrics that hang delay no request.

    limit: maximum number of waiting requests. address: host:port of Triton's metrics. tokenizer: name of this model,
    from which the classifier's follows. warn: called once with a message when the metrics become unreadable.
    """

    def __init__(self, limit: int, address: str, tokenizer: str, warn: Callable[[str], object]) -> None:
        self.limit = limit
        self.address = address
        # Counts the live classifier and the one of a release in progress. Other names have limits of their own.
        classifier = re.sub(f"{RELEASE}$", "", tokenizer).replace("tokenizer", "classifier", 1)
        gauges = [gauge.format(classifier=f"{classifier}(?:{RELEASE})?") for gauge in (WAITING, HELD)]
        self.waiting, self.held = (re.compile(gauge, re.MULTILINE) for gauge in gauges)
        self.warn = warn
        self.room = self.room_read = 0  # room now, and room at the last reading
        self.read_at: float | None = None  # time of the last reading; None after a failed one
        self.next_reading = 0.0
        self.failures = 0
        self.lock = threading.Lock()
        self.reading: threading.Thread | None = None

    def admit(self, count: int) -> int:
        """How many of `count` requests may go on to the model. The caller refuses the rest."""
        if self.room < count:
            self.refresh()
        with self.lock:
            stale = self.reading is not None and time.monotonic() - (self.read_at or 0.0) > STALE_S
            if self.read_at is None or stale:
                return count
            # A fast server may drain its queue before the reading in progress ends. So the last reading's room is
            # granted once more: at most twice the limit can wait.
            spare = self.room_read if self.reading is not None else 0
            admitted = min(count, max(self.room + spare, 0))
            self.room -= admitted
            return admitted

    def refresh(self) -> None:
        """Start a reading, unless the last one is recent, and wait for it briefly."""
        with self.lock:
            if self.reading is not None or time.monotonic() < self.next_reading:
                return
            self.reading = reading = threading.Thread(target=self.read, name="admission", daemon=True)
        reading.start()
        reading.join(WAIT_S)

    def read(self) -> None:
        """Set the room from the gauge. Without the gauge, every request is admitted."""
        waiting, problem = 0, None
        try:
            waiting = self.count_waiting()
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = error
        now = time.monotonic()
        with self.lock:
            self.reading = None
            if problem is None:
                self.failures, self.read_at = 0, now
                self.room = self.room_read = max(self.limit - waiting, 0)
                self.next_reading = now + READ_INTERVAL_S
                return
            self.failures, self.room, self.read_at = self.failures + 1, 0, None
            self.next_reading = now + RETRY_AFTER_S
        if self.failures == 2:
            self.warn(f"no request is refused for overload: {self.address}/metrics cannot be read ({problem!r})")

    def count_waiting(self) -> int:
        """Requests that wait for the classifier. Raises OSError, HTTPException or ValueError without the gauge."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=TIMEOUT_S)) as connection:
            connection.request("GET", "/metrics")
            with connection.getresponse() as response:  # closes it even if it is not read
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                text = read_within(TIMEOUT_S, response).decode("utf-8")
        waiting = self.waiting.findall(text)
        if not waiting:
            raise ValueError("no gauge nv_inference_pending_request_count of a classifier")
        return sum(map(int, map(float, waiting + self.held.findall(text))))


def read_within(seconds: float, response: http.client.HTTPResponse) -> bytes:
    """Read the body. Raises TimeoutError if it has not ended by then, as with a service that streams or drips."""
    body, end = b"", time.monotonic() + seconds
    while part := response.read1(1 << 16):
        body += part
        if time.monotonic() > end:
            raise TimeoutError(f"the response takes longer than {seconds:g} s")
    return body
