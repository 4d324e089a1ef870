"""Keep a server's memory bounded: end it before the system would end something, and say why.

A request's body is unpacked before any limit of ours applies: 400 KB of gzip become 400 MB, and those 1.5 GB while they
are read. Nothing in Triton 2.51 forbids that, and if they are no request, it never frees the 400 MB; what stands before
it can (see docs/production.md). glibc keeps what a flood of chunks took, 200 MB for each of eight threads. It gives
that back too without its caches (GLIBC_TUNABLES: tcache_count=0, mxfast=0), but then the tokenizer takes 1.15 times as
long, as the models' processes get the same environment.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from build_scripts.core.machine import memory_limit
from build_scripts.core.names import CLASSIFIER
from build_scripts.serving.keep.monitor import cpu_seconds, waiting_requests
from build_scripts.serving.start.tritonserver import TritonProcess

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
# A body is unpacked at up to 1 GB/s: looked at so often, it cannot grow by more than a tenth of a small container.
LOOK_EVERY_S, LOOKS_A_SECOND = 0.05, 20
# Of what the machine or the container has, for server and supervisor together.
SHARE = 0.9
# What tritonserver, which begins with 10 MiB where its models are other processes, may hold for HOLD_S on top of that:
# some that it has freed and not given back, and more for each request that waits: 200 clients with requests of 1 MiB
# made it take 490 MiB, 2.7 for each of the 180 that then waited.
GROWTH_BYTES, REQUEST_BYTES, HOLD_S = 256 << 20, 4 << 20, 10.0
# So many may wait (max_pending_requests in tokenizer/config.pbtxt); assumed where the server does not say how many do.
MOST_WAITING = 128


class MemoryWatch:
    """Ends a server that takes too much; `reason` then says so. In a `with` block, in a thread of its own."""

    def __init__(self, server: TritonProcess, metrics_address: str, limit: int | None = None):
        self.server = server
        self.metrics_address = metrics_address
        self.limit = int(SHARE * memory_limit()) if limit is None else limit
        self.reason: str | None = None
        self.least: int | None = None
        self.held_since = float("inf")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def run(self) -> None:
        looks, children = 0, dict[int, str]()
        while self.reason is None and not self.done.wait(LOOK_EVERY_S):
            another_second = looks % LOOKS_A_SECOND == 0
            if another_second:  # finding them costs more than looking at them
                children = {worker.pid: worker.model for worker in cpu_seconds(self.server) if worker.model}
            looks += 1
            own = private_bytes(self.server.process.pid)
            used = own + sum(map(private_bytes, [os.getpid(), *children]))
            used += sum(map(allocated_bytes, self.server.shared_memory()))
            if used > self.limit:
                self.reason = f"it took {used // MIB} MiB of memory, of {self.limit // MIB} that it may take"
            elif another_second and any(model.startswith(CLASSIFIER) for model in children.values()):
                self.reason = self.growth(own)
        if self.reason:
            self.server.kill()

    def growth(self, own: int) -> str | None:
        """What tritonserver itself holds on to, in words, once it was too much for too long."""
        self.least = own if self.least is None else min(self.least, own)
        if own - self.least < GROWTH_BYTES or own - self.least < GROWTH_BYTES + REQUEST_BYTES * self.waiting():
            self.held_since = float("inf")
            return None
        self.held_since = min(self.held_since, time.monotonic())
        if time.monotonic() - self.held_since < HOLD_S:
            return None
        return f"tritonserver held on to {own // MIB} MiB of memory, of {self.least // MIB} that it began with"

    def waiting(self) -> int:
        found = waiting_requests(self.metrics_address)
        return MOST_WAITING if found is None else found


def private_bytes(pid: int) -> int:
    """What a process has in memory for itself alone; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return (int(resident) - int(shared)) * PAGE
    return 0


def allocated_bytes(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_blocks * 512
    return 0
