"""What a supervisor sees of its server: the clock, the process, its counters, and the answers to its own probes.

Watching is tested with another view, whose clock and server are made up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from build_scripts.core.options import Address
from build_scripts.serving.keep import inference
from build_scripts.serving.keep.counters import Counters, read_counters
from build_scripts.serving.keep.inference import Outcome, Probe
from build_scripts.serving.keep.processes import Processes, processes_of
from build_scripts.serving.start.ports import listens
from build_scripts.serving.start.tritonserver import TritonProcess

# An answer that takes longer is worth a look at the processes.
SLOW_S = 0.1


class ServerView:
    """The view of a real server. embedded: see `Installation`. stop: when set, a probe in progress is abandoned."""

    def __init__(self, server: TritonProcess, address: Address, stop: threading.Event, *, embedded: bool):
        self.server = server
        self.address = address
        self.stop = stop
        self.embedded = embedded

    @property
    def pid(self) -> int:
        return self.server.process.pid

    def now(self) -> float:
        return time.monotonic()

    def exit_code(self) -> int | None:
        return self.server.poll()

    def hide_shared_memory(self) -> None:
        self.server.hide_shared_memory()

    def listens(self) -> bool:
        """Whether this server, and not another one, has the HTTP port."""
        return listens(self.pid, self.address.http_port)

    def counters(self) -> Counters | None:
        return read_counters(self.address.metrics_address)

    def processes(self) -> Processes:
        return processes_of(self.pid)

    def probe(self, name: str, timeout_s: float, slow: Callable[[], None] = lambda: None) -> Probe:
        """One inference; SILENT if `stop` was set first. slow: called once if there is no answer within SLOW_S."""
        result = in_background(inference.probe, self.address.http_url, timeout_s, name)
        told, deadline = False, self.now() + SLOW_S
        while not result.done() and not self.stop.wait(0.01):
            if not told and self.now() > deadline:
                slow()
                told = True
        return result.result() if result.done() else Probe(Outcome.SILENT, "the probe was abandoned")


def in_background(function: Callable, *arguments: Any) -> Future:
    """Call a function in a thread, without waiting for it."""
    result: Future = Future()

    def call() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return result
