"""One run directory for each HTTP port, and the lock of the supervisor that serves there.

The lock, not a process id, tells whether a supervisor lives: the kernel releases it however its holder ends, and
process ids are used again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from build_scripts.core.errors import ServingError
from build_scripts.core.locks import LocksUnsupportedError, try_lock
from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.output import say
from build_scripts.serving.keep.verdict import LOCK_FILE, VERDICT_FILE

STATE_FILE = "state.json"
# Commands that look whether a supervisor lives hold its lock for an instant.
LOCK_LIMIT_S = 1.0


def run_directory(http_port: int) -> Path:
    return Path(verdict.RUNS) / str(http_port)


@contextlib.contextmanager
def held(http_port: int) -> Iterator[Path]:
    """Hold the run directory while a supervisor lives. Raises ServingError if another supervisor holds it."""
    directory = run_directory(http_port)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        lock = (directory / LOCK_FILE).open("ab+", buffering=0)
    except OSError as error:
        raise ServingError(
            f"{directory} cannot be used ({error.strerror}); the server's state and log lie there: expected a "
            "directory that this user may write to"
        ) from error
    with lock:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while not _locked(lock, directory):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().decode() or "unknown"
                raise ServingError(
                    f"HTTP_PORT={http_port} is served already, by process {holder}; stop it, or "
                    "choose other ports with HTTP_PORT=… GRPC_PORT=… METRICS_PORT=…"
                )
            time.sleep(0.02)
        forget(http_port)  # left by a killed supervisor
        lock.truncate(0)
        with contextlib.suppress(OSError):  # a full disk costs the process id in the message above
            lock.write(str(os.getpid()).encode())
        try:
            yield directory
        finally:
            forget(http_port)


def is_held(http_port: int) -> bool:
    """Whether a supervisor lives. Raises FileNotFoundError where there never was one."""
    with (run_directory(http_port) / LOCK_FILE).open("rb") as lock:
        try:
            return not try_lock(lock, shared=True)
        except LocksUnsupportedError:
            return True  # what a killed supervisor left is then believed until the next start


def forget(http_port: int) -> None:
    """Remove what a supervisor that has ended said of its server."""
    for name in (STATE_FILE, VERDICT_FILE):
        (run_directory(http_port) / name).unlink(missing_ok=True)


def _locked(file: IO, directory: Path) -> bool:
    """Take the lock without waiting; closing the file releases it. Without locks on the file system, go on."""
    try:
        return try_lock(file)
    except LocksUnsupportedError as error:
        say(f"the file system of {directory} has no locks ({error}): a second server on this port goes unnoticed")
        return True
