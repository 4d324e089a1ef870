"""Standard output and error of a supervisor: lines for people or JSON, and no failure when they cannot be written."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from datetime import datetime
from typing import Any, TextIO

# Before a message of `say`; a JSON line has the time with date and zone.
CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
SUPERVISOR, TRITON = "supervisor", "tritonserver"


class LossyFile(io.FileIO):
    """Drops what cannot be written: EPIPE after `make serve | head -1`, ENOSPC, EAGAIN."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class JsonLines(io.TextIOBase):
    """Writes each line as a JSON object with time, level, source and message."""

    def __init__(self, target: TextIO, level: str):
        self.target, self.level, self.begun = target, level, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text.replace("\r", "\n")).split("\n")
        for line in filter(str.strip, lines):
            write_json(self.target, self.level, SUPERVISOR, CLOCK.sub("", line.rstrip()))
        return len(text)

    def flush(self) -> None:
        self.target.flush()


def write_json(target: TextIO, level: str, source: str, message: str) -> None:
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    line = json.dumps({"time": now, "level": level, "source": source, "message": message}, ensure_ascii=False)
    target.write(line + "\n")  # in one piece: two threads write here


def outlive_output(*, as_json: bool = False) -> None:
    """Make `print` never fail, in this process, from now on. as_json: both streams go to standard output as JSON."""
    if as_json:
        lines = lossy(sys.stdout)
        sys.stdout, sys.stderr = JsonLines(lines, "info"), JsonLines(lines, "warning")
    else:
        sys.stdout, sys.stderr = lossy(sys.stdout), lossy(sys.stderr)


def lossy(stream: TextIO) -> TextIO:
    try:
        file = LossyFile(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError):  # closed, or a test's
        return stream
    return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "replace", line_buffering=True)


def say(message: str) -> None:
    """One line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
