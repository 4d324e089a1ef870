"""Run the soak: `python -m tests.soak --duration 600`, or `make soak DURATION=600`."""

from __future__ import annotations

import sys

from build_scripts.core.command_line import command, run
from tests.soak.soak import check_duration
from tests.soak.soak import soak as run_soak


@command("python -m tests.soak --duration 600")
def soak(model: str = "", max_length: int | None = None, duration: float = 600.0) -> int:
    """Send valid and hostile traffic, kill processes, and check every answer; writes build/soak."""
    return 0 if run_soak(model, max_length, check_duration(duration)) else 1


if __name__ == "__main__":
    sys.exit(run(soak, program="python -m tests.soak"))
