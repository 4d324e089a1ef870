"""One run directory for each HTTP port: the lock of the supervisor that serves there, and its note for other commands.

The lock, not a process id, tells whether a supervisor lives: the kernel gives it back however its holder ends, and
process ids are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from build_scripts.core.errors import ServingError
from build_scripts.core.paths import BUILD

STATE_FILE, LOCK_FILE = "state.json", "lock"
# Who asks whether a supervisor lives has hold of its lock for an instant.
LOCK_LIMIT_S = 1.0


@dataclass(frozen=True)
class RunState:
    """Kept in a file that only its owner may read, because of control_key.

    releases: name of a classifier -> id of the release that tritonserver read from the disk when it loaded it first.
    log: of the running tritonserver. draining: whether it was asked to stop, and answers requests that come all the
    same. embedded: see `triton.Installation`. caches: whether answers are kept for texts that come again.
    """

    pid: int
    http_url: str
    grpc_url: str
    repository: str
    staging: str
    log: str
    releases: dict[str, str]
    control_key: str
    draining: bool = False
    embedded: bool = False
    metrics_address: str = ""
    caches: bool = False

    @property
    def ports(self) -> set[int]:
        """All that the server listens on."""
        places = (self.http_url, self.grpc_url, self.metrics_address)
        return {int(port) for place in places if (port := place.rpartition(":")[2]).isdecimal()}


def run_directory(http_port: int) -> Path:
    return BUILD / "serve" / str(http_port)


@contextlib.contextmanager
def held(http_port: int) -> Iterator[Path]:
    """The run directory, for as long as its supervisor lives. Raises ServingError if another one has it."""
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
        while not _locked(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                lock.seek(0)
                holder = lock.read().decode() or "unknown"
                raise ServingError(
                    f"HTTP_PORT={http_port} is served already, by process {holder}; stop it, or "
                    "choose other ports with HTTP_PORT=… GRPC_PORT=… METRICS_PORT=…"
                )
            time.sleep(0.02)
        forget(http_port)  # what a killed supervisor left
        lock.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk the message above says less
            lock.write(str(os.getpid()).encode())
        try:
            yield directory
        finally:
            forget(http_port)


def read_state(http_port: int) -> RunState:
    """Raises ServingError if no supervised server runs on that port."""
    directory = run_directory(http_port)
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        try:
            with (directory / LOCK_FILE).open("rb") as lock:
                alive = not _locked(lock, fcntl.LOCK_SH)
            state = (directory / STATE_FILE).read_text(encoding="utf-8") if alive else ""
        except PermissionError as error:
            raise ServingError(f"the server on HTTP_PORT={http_port} is another user's: {directory}") from error
        return RunState(**json.loads(state))
    raise ServingError(f"no server of `make serve` runs on HTTP_PORT={http_port}; start one, or name its port")


def write_state(http_port: int, state: RunState) -> None:
    file = run_directory(http_port) / STATE_FILE
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(vars(state)), encoding="utf-8")
    new.replace(file)  # at once: others read it at any moment


def beat(http_port: int) -> None:
    """The supervisor is at work, says the time of its state file; a full disk does not matter to that."""
    with contextlib.suppress(OSError):
        os.utime(run_directory(http_port) / STATE_FILE)


def since_beat(http_port: int) -> float:
    """Seconds since the supervisor's last sign of life."""
    with contextlib.suppress(OSError):
        return time.time() - (run_directory(http_port) / STATE_FILE).stat().st_mtime
    return float("inf")


def forget(http_port: int) -> None:
    (run_directory(http_port) / STATE_FILE).unlink(missing_ok=True)


def _locked(file: IO, kind: int) -> bool:
    """Take a lock if that needs no waiting; it goes with the file."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
