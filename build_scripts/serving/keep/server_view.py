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


class ServerView:
    """The view of a real server. stop: when it is set, a probe in progress is abandoned."""

    def __init__(self, server: TritonProcess, address: Address, stop: threading.Event):
        self.server = server
        self.address = address
        self.stop = stop

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

    def probe(self, name: str, timeout_s: float) -> Probe:
        """One inference; SILENT if `stop` was set first."""
        found = interruptible(self.stop, inference.probe, self.address.http_url, timeout_s, name)
        return found or Probe(Outcome.SILENT, "the probe was abandoned")


def interruptible(stop: threading.Event, function: Callable, *arguments: Any) -> Any:
    """The function's result; None if `stop` was set first. The function then ends in the background."""
    result: Future = Future()

    def call() -> None:
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not result.done() and not stop.wait(0.01):
        pass
    return result.result() if result.done() else None
