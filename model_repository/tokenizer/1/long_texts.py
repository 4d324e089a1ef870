"""A thread that tokenizes what would hold other requests up.

Tokenizing takes time in proportion to a text's bytes, also of a text of which most is truncated: 0.1 to 0.4 ms a KiB,
2.2 for the worst that was found, an Arabic ligature that NFKC turns into 18 characters. So a batch with much text is
not tokenized by `execute`, behind which everybody waits, but here, one text after the other.
"""

import heapq
import itertools
import os
import threading
import time

# A request is due once it has waited a second for each so many bytes, at about which pace they are tokenized. The one
# due first goes first, between any two texts: a short request passes longer ones, and each has its turn in the end.
BYTES_PER_S = 2 << 20
# So that the threads of `execute` and of the classifier go first; the embedded classifier's own nice value is the same.
NICE = 5


class LongTexts:
    """encode: texts -> output name -> array. limit: bytes of text that may wait, without the request in work."""

    def __init__(self, encode, limit):
        self.encode = encode
        self.limit = limit
        self.waiting = []  # a heap of [due, number, work]
        self.waiting_bytes = 0
        self.unanswered = 0
        self.numbers = itertools.count()
        self.changed = threading.Condition()
        threading.Thread(target=self.run, name="long texts", daemon=True).start()

    def add(self, texts, size, answer):
        """Whether there is room for a request; then answer(parts, error) is called once, from the thread.

        texts: list of str or pairs; size: their bytes. parts: what `encode` gave for each; error: an exception or None.
        """
        with self.changed:
            if self.waiting and self.waiting_bytes + size > self.limit:
                return False
            due = time.monotonic() + size / BYTES_PER_S
            heapq.heappush(self.waiting, [due, next(self.numbers), Work(texts, size, answer)])
            self.waiting_bytes += size
            self.unanswered += 1
            self.changed.notify_all()
        return True

    def finish(self):
        """Return once every request was answered."""
        with self.changed:
            self.changed.wait_for(lambda: not self.unanswered)

    def run(self):
        """The thread: a text of whichever request is due first, for ever."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting)
                entry = heapq.heappop(self.waiting)
            work, error = entry[-1], None
            try:
                work.parts.append(self.encode([work.texts[len(work.parts)]]))
            except Exception as problem:  # whatever it is, it must cost this request only, not the thread
                error = problem
            with self.changed:
                if error is None and len(work.parts) < len(work.texts):
                    heapq.heappush(self.waiting, entry)
                    continue
                self.waiting_bytes -= work.size
            work.answer(work.parts, error)
            with self.changed:
                self.unanswered -= 1
                self.changed.notify_all()


class Work:
    """A request's texts, and what was made of the first of them."""

    def __init__(self, texts, size, answer):
        self.texts, self.size, self.answer = texts, size, answer
        self.parts = []
