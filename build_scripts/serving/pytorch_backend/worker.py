"""A thread that computes queued requests part by part and answers each one when its last row is done.

`execute` returns at the end of the part in progress. Nothing can overtake that part, and Triton joins the requests that
arrive during it into its next batch. So a short text overtakes the next part of a long one. Response senders also work
after `execute` in models that are not decoupled (tried with Triton 2.51).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:  # the path of these modules as mypy sees it
    from build_scripts.serving.pytorch_backend.gauge import Gauge
    from build_scripts.serving.pytorch_backend.idle_threads import IdleThreads
    from build_scripts.serving.pytorch_backend.schedule import LARGE_S, Entry, Part, Piece, Schedule
else:
    from schedule import LARGE_S

# Cancellation is checked before rows with more tokens than this; the check costs as much as a few tokens.
CANCELLABLE_TOKENS = 256
# Maximum wait after a part, if there is a backlog, for Triton to hand in requests that arrived during the part.
LISTENING_S = 0.001


class Waiting:
    """A queued request. columns: copies of its inputs, because Triton reclaims the request's memory."""

    def __init__(self, request: pb_utils.InferenceRequest, columns: Sequence[np.ndarray]) -> None:
        self.id = request.request_id()
        self.requested = request.requested_output_names()
        self.sender = request.get_response_sender()
        self.columns = columns

    def request_id(self) -> str:
        return self.id

    def requested_output_names(self) -> Collection[str]:
        return self.requested

    def send(self, response: pb_utils.InferenceResponse) -> None:
        try:
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as problem:
            pb_utils.Logger.log_warn(f"a response could not be sent: {problem}")


class Worker:
    """The thread and its schedule. `changed` guards all shared state.

    compute: inputs (rows, width) -> outputs (rows, …). respond: request, outputs -> response. pause: called after a
    part with its seconds and the number of requests it answered. release: ends the calling thread's OpenMP threads;
    called when there is no backlog, because `execute` may compute next.
    """

    def __init__(
        self,
        schedule: Schedule,
        gauge: Gauge,
        threads: IdleThreads,
        compute: Callable[[list[np.ndarray]], list[np.ndarray]],
        respond: Callable[[Waiting, list[np.ndarray]], pb_utils.InferenceResponse],
        pause: Callable[[float, int], None],
        release: Callable[[], object],
    ) -> None:
        self.schedule = schedule
        self.gauge = gauge
        self.threads = threads
        self.compute = compute
        self.respond = respond
        self.pause = pause
        self.release = release
        self.changed = threading.Condition()
        # busy: a part is in progress. long: that part is a single text over the maximum (Schedule.is_long).
        self.busy = self.long = self.ending = False
        self.handed_over = 0
        self.thread: threading.Thread | None = None

    def leaves_to_caller(self, costs: Sequence[Sequence[int]]) -> bool:
        """Whether `execute` may compute these requests: they fit in one part, and the worker is idle.

        The worker stays idle, because only the caller hands requests over. costs: tokens of each request's rows.
        """
        with self.changed:
            return self.schedule.is_one_part(costs, time.monotonic()) and not self.busy and not self.schedule

    def beside(self, costs: Sequence[Sequence[int]]) -> list[int]:
        """Indices of the requests that `execute` may compute while one long text is in progress: at most one part."""
        with self.changed:
            return self.schedule.smallest(costs) if self.long else []

    def hand_over(self, entries: Sequence[Entry]) -> None:
        """Queue entries. Blocks until there is room, then until the part in progress ends or proves long.

        While this blocks, requests wait in Triton's queue, where its gauge shows them and its batcher joins them.
        Without blocking, requests came in one by one during a part: 16 clients with short texts got 0.6 times the rate.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.schedule.has_room_for(entries))
            for entry in entries:
                self.schedule.add(entry, time.monotonic())
            self.handed_over += 1
            if not self.thread:
                self.thread = threading.Thread(target=self.run, name="parts", daemon=True)
                self.thread.start()
            self.gauge.show(self.schedule.requests)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not self.busy or self.long, LARGE_S)

    def finish(self) -> None:
        """Compute the backlog and end the thread."""
        with self.changed:
            self.ending, thread = True, self.thread
            self.changed.notify_all()
        if thread:
            thread.join()
        self.gauge.close()

    def run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self.schedule) or self.ending)
                if not self.schedule:
                    return
                self.busy = True
                part = self.schedule.take(time.monotonic())
                self.long = self.schedule.is_long(part)
                self.gauge.show(self.schedule.requests)
                self.changed.notify_all()
            began = time.monotonic()
            answered = self.work(part)
            seconds = time.monotonic() - began
            with self.changed:
                self.schedule.done(part, seconds)
                self.busy = self.long = False
                self.changed.notify_all()
                waiting = bool(self.schedule)
                if waiting:
                    self.listen()
            if not waiting:
                self.release()
            self.pause(seconds, 0 if waiting else answered)

    def listen(self) -> None:
        """Give `execute`, which waited for the part, a moment to hand in new requests."""
        heard = self.handed_over
        self.changed.wait_for(lambda: self.handed_over > heard, LISTENING_S)

    def work(self, part: Part) -> int:
        """Compute a part and answer the requests that it completes; returns their number."""
        pieces = [piece for piece in part.pieces if not self.is_cancelled(piece[0], piece[1])]
        failed = self.attempt(pieces)
        for entry, problem in failed.items():
            error = pb_utils.TritonError(f"PyTorch execute failure: {problem}", pb_utils.TritonError.INTERNAL)
            self.give_up(entry, error)
        complete = [entry for entry, _, last in pieces if last == len(entry.tokens) and entry not in failed]
        for entry in complete:
            outputs = [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in zip(*entry.results)]
            entry.request.send(self.respond(entry.request, outputs))
        return len(complete)

    def attempt(self, pieces: list[Piece]) -> dict[Entry, Exception]:
        """Add each piece's outputs to its entry's results; returns the entries that failed.

        When a batch fails, each piece is tried alone, so that only the faulty request fails.
        """
        if not pieces:
            return {}
        try:
            columns = [[c[first:last] for c in entry.request.columns] for entry, first, last in pieces]
            tokens = sum(sum(entry.tokens[first:last]) for entry, first, last in pieces)
            with self.threads.chosen(tokens):
                outputs, end = self.compute([np.concatenate(rows) for rows in zip(*columns)]), 0
            for entry, first, last in pieces:
                start, end = end, end + last - first
                entry.results.append([output[start:end] for output in outputs])
            return {}
        except Exception as problem:
            if len(pieces) == 1:
                return {pieces[0][0]: problem}
            return {entry: reason for piece in pieces for entry, reason in self.attempt([piece]).items()}

    def is_cancelled(self, entry: Entry, first: int) -> bool:
        """Whether the client cancelled before this row. If so, send the last response; Triton frees the request."""
        if sum(entry.tokens[first:]) < CANCELLABLE_TOKENS or not entry.request.sender.is_cancelled():
            return False
        self.give_up(entry, pb_utils.TritonError("the client cancelled the request", pb_utils.TritonError.CANCELLED))
        return True

    def give_up(self, entry: Entry, error: pb_utils.TritonError) -> None:
        with self.changed:
            self.schedule.drop(entry)
            self.changed.notify_all()
        entry.request.send(pb_utils.InferenceResponse(error=error))
