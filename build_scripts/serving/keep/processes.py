"""The processes of a running tritonserver: their state, CPU time, memory, and the model that each one runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

MIB = 1 << 20
PAGE_BYTES, TICKS_PER_S = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
# States in /proc/<pid>/stat. A thread that waits for the CPU is RUNNING too; DISK: it waits for a page or a file.
RUNNING, DISK, SLEEPING, STOPPED, ZOMBIE = "RDSTZ"
# Of one core. An idle server needs 2 %; the kernel counts in hundredths of a second.
IDLE_SHARE = 0.05


class Process(NamedTuple):
    """model: the one that a stub runs; "" for tritonserver and every other process. state: RUNNING or DISK if any of
    its threads is. cpu_s: since its start.
    """

    model: str
    state: str
    cpu_s: float

    @property
    def is_runnable(self) -> bool:
        return self.state in (RUNNING, DISK)


Processes = dict[int, Process]


def processes_of(tritonserver: int) -> Processes:
    """Process id -> process, of tritonserver and everything that it started."""
    found: Processes = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(tritonserver)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, OSError, IndexError, ValueError):
                state, cpu_s = _stat(Path(f"/proc/{one.pid}/stat"))
                if state == SLEEPING:
                    state = _state_of_threads(one.pid)
                found[one.pid] = Process("" if one is parent else model_of(one), state, cpu_s)
    return found


def _stat(file: Path) -> tuple[str, float]:
    """State, and CPU seconds. The command before them may hold blanks and parentheses."""
    fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0].upper(), (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _state_of_threads(pid: int) -> str:
    """RUNNING or DISK if a thread is; else SLEEPING. The process's own state is that of its first thread alone."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            state, _ = _stat(thread / "stat")
            if state in (RUNNING, DISK):
                return state
    return SLEEPING


def model_of(stub: psutil.Process) -> str:
    """The model that a stub process runs; its first argument is <repository>/<model>/<version>/<file>."""
    with contextlib.suppress(psutil.ZombieProcess):
        path = Path(*stub.cmdline()[1:2])
        return path.parts[-3] if len(path.parts) >= 3 else ""
    return ""


def worked(process: Process, before: Process | None, period_s: float) -> bool:
    """Whether a process got CPU time in a period, or waits for it at the end.

    A process that waits for a share of the CPU on a busy machine is runnable, however little it gets.
    """
    return process.is_runnable or process.cpu_s - (before.cpu_s if before else 0.0) >= IDLE_SHARE * period_s


def private_bytes(pid: int) -> int:
    """Resident memory that a process shares with no other; 0 if it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return (int(resident) - int(shared)) * PAGE_BYTES
    return 0
