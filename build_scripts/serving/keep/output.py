"""Standard output and error of a supervisor: a reader that is gone or a full disk must not end it."""

from __future__ import annotations

import io
import sys
import time
from typing import Any


class LossyFile(io.FileIO):
    """Drops what cannot be written: EPIPE after `make serve | head -1`, ENOSPC, EAGAIN."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def outlive_output() -> None:
    """Make `print` to standard output and error never fail, in this process, from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            file = LossyFile(stream.fileno(), "w", closefd=False)
        except (AttributeError, OSError):  # closed, or a test's
            continue
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "replace", line_buffering=True))


def say(message: str) -> None:
    """One line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
