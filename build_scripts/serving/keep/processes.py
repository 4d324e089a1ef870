"""The processes of a running tritonserver: their state, CPU time, memory, and the model that each one runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

from build_scripts.serving.start.tritonserver import TritonProcess

MIB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Worker(NamedTuple):
    """A process of the server. model: the one that its stub runs; "" for tritonserver and every other process."""

    pid: int
    model: str


CpuSeconds = dict[Worker, float]


def broken_process(server: TritonProcess) -> str | None:
    """Describe a process of the server that was killed or stopped; None if there is none.

    Triton does not reap killed stubs, so they stay zombies. An unloaded stub is a zombie for a moment too, so the
    caller also asks for an inference.
    """
    states = {psutil.STATUS_ZOMBIE: "was killed", psutil.STATUS_STOPPED: "is stopped"}
    with contextlib.suppress(psutil.NoSuchProcess):
        tritonserver = psutil.Process(server.process.pid)
        for process in [tritonserver, *tritonserver.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if (state := process.status()) in states:
                    return f"process {process.pid} of the server {states[state]}"
    return None


def cpu_seconds(server: TritonProcess) -> CpuSeconds:
    """CPU seconds used since the start by each process of the server."""
    seconds: CpuSeconds = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        tritonserver = psutil.Process(server.process.pid)
        seconds[Worker(tritonserver.pid, "")] = sum(tritonserver.cpu_times()[:2])
        for child in tritonserver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds[Worker(child.pid, model_of(child))] = sum(child.cpu_times()[:2])
    return seconds


def model_of(stub: psutil.Process) -> str:
    """The model that a stub process runs; its first argument is <repository>/<model>/<version>/<file>."""
    path = Path(*stub.cmdline()[1:2])
    return path.parts[-3] if len(path.parts) >= 3 else ""


def private_bytes(pid: int) -> int:
    """Resident memory that a process shares with no other; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return (int(resident) - int(shared)) * PAGE_BYTES
    return 0
