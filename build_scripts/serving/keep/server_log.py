"""The reason for a failure, from Triton's log."""

from __future__ import annotations

import contextlib
from pathlib import Path

# Lines that say why a server ends, or why a model does not load.
REASONS = ("unrecognized option", "failed to load '", "Failed to initialize Python stub")


def last_error(log: Path) -> str:
    """The log's last line that names a reason, or else its last line: a container's log is lost with the container."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("error:") or any(words in line for words in REASONS)]
        if lines:
            return f"{(telling or lines)[-1]} (full log: {log})"
    return f"see {log}"
