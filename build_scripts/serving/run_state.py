"""The note that `make serve` leaves about the server it runs on a port, and where other commands find it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

import psutil

from build_scripts.settings import BUILD, ServingError

STATE_FILE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Kept in a file that only its owner may read, because of control_key.

    release: what tritonserver read from the disk when it last started. log: of the running tritonserver.
    """

    pid: int
    http_url: str
    grpc_url: str
    repository: str
    staging: str
    log: str
    release: str
    control_key: str


def run_directory(http_port: int) -> Path:
    return BUILD / "serve" / str(http_port)


def read_state(http_port: int) -> RunState:
    """Raises ServingError if no supervised server runs on that port."""
    file = run_directory(http_port) / STATE_FILE
    with contextlib.suppress(OSError, ValueError, TypeError):
        state = RunState(**json.loads(file.read_text(encoding="utf-8")))
        if psutil.pid_exists(state.pid):
            return state
    raise ServingError(f"no server of `make serve` runs on HTTP_PORT={http_port}; start one, or name its port")


def write_state(http_port: int, state: RunState) -> None:
    file = run_directory(http_port) / STATE_FILE
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(vars(state)), encoding="utf-8")
    new.replace(file)  # at once: others read it at any moment


def forget(http_port: int) -> None:
    (run_directory(http_port) / STATE_FILE).unlink(missing_ok=True)
