"""A service that answers every request and records the bodies: the other end of the load client."""

from __future__ import annotations

import threading
import time

from tests.support.http_stand_in import Reply, Request, StandIn
from tests.support.waiting import HANG_S


class Recorder(StandIn):
    """Answers after 10 ms.

    meeting: the first answers wait until this many requests have come, so that a busy machine cannot keep them apart.
    """

    def __init__(self, status: int = 200, meeting: int = 1):
        self.status, self.meeting = status, meeting
        self.bodies: list[str] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.all_came = threading.Lock(), threading.Event()
        super().__init__(self.record)

    def record(self, request: Request) -> Reply:
        with self.lock:
            self.bodies.append(request.body.decode())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            if len(self.bodies) >= self.meeting:
                self.all_came.set()
        self.all_came.wait(HANG_S)
        time.sleep(0.01)
        with self.lock:
            self.at_once -= 1
        # Triton sends this header before Content-Length, which has the same ending.
        return Reply(self.status, b"{}", {"Inference-Header-Content-Length": "900"})
