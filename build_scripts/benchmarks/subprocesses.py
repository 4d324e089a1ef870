"""Processes of a benchmark: free ports, start and stop, memory and CPU time."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from build_scripts.core.errors import ServingError
from build_scripts.core.options import VARIABLE_PREFIX
from build_scripts.serving.start.tritonserver import PR_SET_PDEATHSIG

STOP_LIMIT_S = 30.0


def free_ports(count: int) -> list[int]:
    """Unused ports of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment_without_variables() -> dict[str, str]:
    """This process's environment without the variables of the command line."""
    return {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE_PREFIX)}


@contextlib.contextmanager
def running(
    module: str,
    arguments: list[str],
    log: Path,
    python: str = sys.executable,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[subprocess.Popen]:
    """`python -m module arguments` with its output in the log; stopped when the block ends.

    more: added to the environment. Variables of the benchmark's command line do not reach the process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment_without_variables(), "PYTHONUNBUFFERED": "1", **more},
            # Ctrl-C reaches the benchmark only, which stops the process in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(answers: Callable[[], bool], poll: Callable[[], int | None], log: Path, limit_s: float) -> None:
    """Return once `answers` is true. Raises ServingError if the process ends first or the limit passes."""
    deadline = time.monotonic() + limit_s
    while not answers():
        if poll() is not None:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"])[-1]
            raise ServingError(f"a measured process ended with code {poll()}: {last} (full log: {log})")
        if time.monotonic() > deadline:
            raise ServingError(f"a measured process did not answer within {limit_s:.0f} s; see {log}")
        time.sleep(0.1)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def peak_memory(pid: int, *, children_only: bool = False) -> float:
    """MiB: sum of the peak resident memory of the process and all its descendants.

    The kernel keeps the peaks, so sampling cannot miss one. Shared pages count in each process.
    """
    root = psutil.Process(pid)
    family = [*([] if children_only else [root]), *root.children(recursive=True)]
    return sum(_peak_kib(Path(f"/proc/{process.pid}/status")) for process in family) / 1024


def cpu_seconds(pid: int) -> float:
    """CPU time of the process and all its descendants so far."""
    seconds = 0.0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds += sum(process.cpu_times()[:2])
    return seconds


def end_on_sigterm() -> None:
    """Let SIGTERM end this process like Ctrl-C, which stops its subprocesses first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _peak_kib(status: Path) -> int:
    with contextlib.suppress(OSError):
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
