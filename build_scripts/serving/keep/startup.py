"""Wait until a launched server answers, or tell why it will not; then warm it up."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.inference import PROBE_ID
from build_scripts.serving.keep.local_http import exchange
from build_scripts.serving.keep.processes import STOPPED, ZOMBIE, worked
from build_scripts.serving.keep.server_log import last_error
from build_scripts.serving.keep.server_view import ServerView
from build_scripts.serving.keep.watch import PROBE_TIMEOUT_S, Tell
from build_scripts.serving.start.tritonserver import LOAD_LIMIT_S

LOOK_EVERY_S = 0.1
# tritonserver reaps a stub that ended, and logs the reason for its end, within this period of idleness.
REAP_S = 1.0


class Startup:
    """Waits for one server. log: Triton's."""

    def __init__(self, view: ServerView, stop: threading.Event, log: Path, tell: Tell):
        self.view = view
        self.stop = stop
        self.log = log
        self.tell = tell
        # Seconds for which a process was dead or stopped while tritonserver did nothing about it.
        self.broken_s = 0.0

    def wait(self, names: Sequence[str]) -> str | None:
        """None once every classifier answers, or `stop` is set; else why that will not happen."""
        deadline = self.view.now() + LOAD_LIMIT_S
        while not self.stop.wait(LOOK_EVERY_S):
            self.tell(verdict.STARTING, "models are loading")
            self.view.hide_shared_memory()
            if (code := self.view.exit_code()) is not None:
                return f"could not start: tritonserver ended with code {code}: {last_error(self.log)}"
            if broken := self.broken():
                code = self.view.exit_code()
                what = broken if code is None else f"tritonserver ended with code {code}"
                return f"could not start: {what}: {last_error(self.log)}"
            if self.view.now() > deadline:
                return f"could not start: no inference answered within {LOAD_LIMIT_S:.0f} s; see {self.log}"
            # Until it listens there, an answer would be another server's.
            if self.view.listens() and all(self.view.probe(name, PROBE_TIMEOUT_S).healthy for name in names):
                return None
        return None

    def broken(self) -> str | None:
        """A process that is dead or stopped and stays so while tritonserver idles.

        Triton first runs each stub without arguments, and for a moment that one is dead too: until tritonserver gets
        the CPU to reap it.
        """
        before, began = self.view.processes(), self.view.now()
        dead = {pid: one for pid, one in before.items() if one.state in (ZOMBIE, STOPPED)}
        if not dead:
            self.broken_s = 0.0
            return None
        self.stop.wait(LOOK_EVERY_S)
        after, period_s = self.view.processes(), self.view.now() - began
        left = {pid: one for pid, one in dead.items() if pid in after and after[pid].state == one.state}
        parent = after.get(self.view.pid)
        if not left or (parent and worked(parent, before.get(self.view.pid), period_s)):
            self.broken_s = 0.0
            return None
        self.broken_s += min(period_s, 2 * LOOK_EVERY_S)
        if self.broken_s < REAP_S:
            return None
        pid, one = next(iter(left.items()))
        return f"process {pid} of the server {'was killed' if one.state == ZOMBIE else 'is stopped'}"


def warm_up(url: str, name: str, post: Callable = exchange) -> None:
    """Classify a text of every length that the classifier rounds to: oneDNN compiles at the first of each.

    Only after the first start; after a restart the waiting traffic does it. Failures show in the watch.
    """
    for tokens in (*range(3, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 257, 8), *range(272, 513, 16)):
        body = json.dumps({"id": PROBE_ID, "TEXT": "word " * (tokens - 2)}).encode()
        with contextlib.suppress(OSError, ValueError):
            post(f"{url}/v2/models/{name}/generate", body, timeout_s=30)
