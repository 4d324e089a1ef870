"""The supervisor's heartbeat: the modification time of its state file."""

from __future__ import annotations

import contextlib
import os
import time

from build_scripts.serving.keep.run_directory import STATE_FILE, run_directory


def beat(http_port: int) -> None:
    """Show that the supervisor is at work; needs no space on the disk."""
    with contextlib.suppress(OSError):
        os.utime(run_directory(http_port) / STATE_FILE)


def since_beat(http_port: int) -> float:
    """Seconds since the supervisor's last heartbeat."""
    with contextlib.suppress(OSError):
        return time.time() - (run_directory(http_port) / STATE_FILE).stat().st_mtime
    return float("inf")
