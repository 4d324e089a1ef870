"""The supervisor's verdict on its server: a small file in the run directory whose time is the supervisor's heartbeat.

Probes run every two seconds in every replica, so reading it costs no import but the interpreter's own. The file is
overwritten in place, which needs no space on the disk.
"""

# pathlib takes 10 ms to import.
# ruff: noqa: PTH100, PTH118, PTH120, PTH123

import fcntl
import os
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
# A directory for each HTTP port; see `run_directory`.
RUNS = os.path.join(PROJECT, "build", "serve")
LOCK_FILE, VERDICT_FILE = "lock", "verdict"

# silent: nothing answered at the last look, and nothing computed either.
STARTING, READY, SILENT, OVERLOADED = "starting", "ready", "silent", "overloaded"
DRAINING, RESTARTING = "draining", "restarting"
# Bytes of the file; longer details are cut.
SIZE = 1000
# A supervisor looks at its server every 0.4 to 2 s. It says nothing while it stops a server, for 15 s at most.
STALE_S = 30.0


class VerdictFile:
    """The supervisor's side. host: the one that local clients connect to."""

    def __init__(self, http_port: int, host: str):
        self.path = os.path.join(RUNS, str(http_port), VERDICT_FILE)
        self.host = host

    def tell(self, verdict: str, detail: str = "") -> None:
        """Replace the verdict. On a full disk there may be no file; probes then ask the server themselves."""
        text = f"{verdict}\n{self.host}\n{detail}\n".encode("utf-8", "replace")[:SIZE]
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError:
            return
        try:
            os.pwrite(file, text.ljust(SIZE), 0)
        except OSError:
            pass
        finally:
            os.close(file)


def read(host: str, http_port: str) -> tuple[str, str] | None:
    """Verdict and detail of the supervised server at an address; None without a living supervisor of this project."""
    directory = os.path.join(RUNS, http_port)
    try:
        with open(os.path.join(directory, VERDICT_FILE), "rb") as file:
            silence_s = time.time() - os.fstat(file.fileno()).st_mtime
            verdict, own_host, detail, *_ = file.read().decode("utf-8", "replace").split("\n")
        alive = _is_locked(os.path.join(directory, LOCK_FILE))
    except (OSError, ValueError):
        return None
    here = {"127.0.0.1", "localhost"}
    if not alive or silence_s > STALE_S or not (host == own_host or {host, own_host} <= here):
        return None
    return verdict, detail


def _is_locked(path: str) -> bool:
    """Whether a process holds the lock; also True where the file system has no locks."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
