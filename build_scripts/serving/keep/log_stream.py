"""With LOG=json: Triton's log on standard output, among the supervisor's lines."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from build_scripts.serving.keep.output import TRITON, JsonLines, write_json

READ_EVERY_S = 0.2
LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "fatal"}
# `I1129 17:18:17.822559 22057 model_lifecycle.cc:624] "successfully unloaded 'classifier' version 1"`
LINE = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ \d+ (\S+\] .*)")


@contextlib.contextmanager
def following(log: Path) -> Iterator[None]:
    """Copy a log to standard output, if that takes JSON lines. Each line gets the time of its reading."""
    stream = sys.stdout
    if not isinstance(stream, JsonLines):
        yield
        return
    log.touch(mode=0o600)
    done = threading.Event()
    thread = threading.Thread(target=copy, args=(log, stream.target, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def copy(log: Path, target: TextIO, done: threading.Event) -> None:
    with log.open(encoding="utf-8", errors="replace") as lines:
        ended, begun = False, ""
        while not ended:
            ended = done.wait(READ_EVERY_S)
            *whole, begun = (begun + lines.read()).split("\n")
            for line in filter(str.strip, whole):
                write_json(target, *parsed(line))


def parsed(line: str) -> tuple[str, str, str]:
    """Level, source, and message with the place in Triton's source; other lines as they are."""
    found = LINE.fullmatch(line)
    if not found:
        return "info", TRITON, line
    place, _, message = found[2].partition("] ")
    with contextlib.suppress(ValueError):
        message = str(json.loads(message)) if message.startswith('"') else message
    return LEVELS[found[1]], TRITON, f"{place}: {message}"
