"""A thread that computes what `execute` handed over, part by part, and answers each request when its rows are done.

`execute` returns when the part that is being computed ends: nothing can overtake that one, and meanwhile Triton joins
what arrives into one batch, which it then hands in. So a short text overtakes a long one's next part. A response sender
may be used after `execute` in models that are not decoupled too (tried with 2.51).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from schedule import LARGE_S, Entry, Part, Piece, Schedule

# Asking Triton whether a caller has gone costs as much as a few tokens, so it is asked before expensive rows only.
TOKENS_WORTH_ASKING = 256


# So long after a part, while more waits, for Triton to hand in what came meanwhile.
LISTENING_S = 0.001
# Setting the gauge costs as much, so it is set at most so often; to 0 always.
GAUGE_INTERVAL_S = 0.005


class Gauge:
    """Shows in Triton's metrics how many requests are held here: Triton's own gauge counts them as begun.

    Admission adds it to Triton's. Both objects live as long as the model, or Triton drops the metric.
    """

    def __init__(self, model: str, instance: str):
        self.family = pb_utils.MetricFamily(
            name="text_classifier_held_requests",
            description="Requests that the backend took from Triton's queue and has not begun to compute",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self.metric = self.family.Metric(labels={"model": model, "instance": instance})
        self.shown, self.next = 0, 0.0

    def end(self) -> None:
        """Both are given up while Triton still listens: the stub crashed when the interpreter did so at its end."""
        self.metric = self.family = None

    def show(self, number: int) -> None:
        now = time.monotonic()
        if number != self.shown and (number == 0 or now >= self.next):
            self.metric.set(number)
            self.shown, self.next = number, now + GAUGE_INTERVAL_S


class Waiting:
    """A request that was handed over. columns: copies of its inputs, because the request's own memory is not kept."""

    def __init__(self, request, columns: list[np.ndarray]):
        self.sender = request.get_response_sender()
        self.columns = columns

    def send(self, response) -> None:
        try:
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as problem:
            pb_utils.Logger.log_warn(f"an answer could not be sent: {problem}")


class Worker:
    """Owns the schedule. All that is shared is read and written under `changed`.

    compute: inputs (rows, width) -> output arrays, a row each. respond: output arrays -> a response. pause: called with
    the seconds of the last part and how many requests it answered, before the next is taken. release: ends the OpenMP
    threads of whoever calls it; called by the thread when nothing waits, because `execute` may compute then.
    """

    def __init__(
        self,
        schedule: Schedule,
        gauge: Gauge,
        compute: Callable,
        respond: Callable,
        pause: Callable[[float, int], None],
        release: Callable[[], object],
    ):
        self.schedule = schedule
        self.gauge = gauge
        self.compute = compute
        self.respond = respond
        self.pause = pause
        self.release = release
        self.changed = threading.Condition()
        self.busy = self.ending = False
        self.handed_over = 0
        self.thread: threading.Thread | None = None

    def leaves_to_caller(self, costs: list[list[int]]) -> bool:
        """Whether `execute` may compute these requests at once: one part, and nothing else is computed.

        Nothing will be meanwhile: who calls is the only one that hands over. costs: tokens of each request's rows.
        """
        with self.changed:
            return self.schedule.is_one_part(costs, time.monotonic()) and not self.busy and not self.schedule

    def hand_over(self, entries: list[Entry]) -> None:
        """Returns once there is room for them, and the part that is being computed has ended or takes long.

        Until then Triton's own queue grows, and its gauge shows it. Handed in one by one while a part is computed, on
        the same cores, 16 clients with short texts got 0.6 of the requests/s.
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
            self.changed.wait_for(lambda: not self.busy, LARGE_S)

    def finish(self) -> None:
        """Compute what is held, and end."""
        with self.changed:
            self.ending, thread = True, self.thread
            self.changed.notify_all()
        if thread:
            thread.join()
        self.gauge.end()

    def run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the number a thread, and this one is new
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.schedule or self.ending)
                if not self.schedule:
                    return
                self.busy = True
                part = self.schedule.take(time.monotonic())
                self.gauge.show(self.schedule.requests)
                self.changed.notify_all()
            began = time.monotonic()
            answered = self.work(part)
            seconds = time.monotonic() - began
            with self.changed:
                self.schedule.done(part, seconds)
                self.busy = False
                self.changed.notify_all()
                waiting = bool(self.schedule)
                if waiting:
                    self.listen()
            if not waiting:
                self.release()
            self.pause(seconds, 0 if waiting else answered)

    def listen(self) -> None:
        """A moment in which `execute`, which waited for the part, hands in what came meanwhile."""
        heard = self.handed_over
        self.changed.wait_for(lambda: self.handed_over > heard, LISTENING_S)

    def work(self, part: Part) -> int:
        """Compute a part and answer whose last rows it held; returns how many requests that were."""
        pieces = [piece for piece in part.pieces if not self.is_cancelled(*piece)]
        failed = self.attempt(pieces)
        for entry, problem in failed.items():
            error = pb_utils.TritonError(f"PyTorch execute failure: {problem}", pb_utils.TritonError.INTERNAL)
            self.give_up(entry, error)
        complete = [entry for entry, _, last in pieces if last == len(entry.tokens) and entry not in failed]
        for entry in complete:
            outputs = entry.results[0] if len(entry.results) == 1 else map(np.concatenate, zip(*entry.results))
            entry.request.send(self.respond(outputs))
        return len(complete)

    def attempt(self, pieces: list[Piece]) -> dict[Entry, Exception]:
        """Add each piece's outputs to its entry's results; returns what failed.

        If several fail together each is tried alone: it is somebody's fault, and the others must get their answers.
        """
        if not pieces:
            return {}
        try:
            columns = [[c[first:last] for c in entry.request.columns] for entry, first, last in pieces]
            outputs, end = self.compute([np.concatenate(rows) for rows in zip(*columns)]), 0
            for entry, first, last in pieces:
                start, end = end, end + last - first
                entry.results.append([output[start:end] for output in outputs])
            return {}
        except Exception as problem:
            if len(pieces) == 1:
                return {pieces[0][0]: problem}
            return {entry: reason for piece in pieces for entry, reason in self.attempt([piece]).items()}

    def is_cancelled(self, entry: Entry, first: int, last: int) -> bool:
        """Whether nobody waits for these rows any more; then the request is answered, so that Triton can forget it."""
        if sum(entry.tokens[first:]) < TOKENS_WORTH_ASKING or not entry.request.sender.is_cancelled():
            return False
        self.give_up(entry, pb_utils.TritonError("the caller has gone", pb_utils.TritonError.CANCELLED))
        return True

    def give_up(self, entry: Entry, error) -> None:
        with self.changed:
            self.schedule.drop(entry)
            self.changed.notify_all()
        entry.request.send(pb_utils.InferenceResponse(error=error))
