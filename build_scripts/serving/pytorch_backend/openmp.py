"""End a thread's OpenMP threads before another thread computes.

Each thread that computes with torch starts OpenMP threads and keeps them. If they outnumber the cores, libgomp sleeps
between matrix products instead of spinning. Each product then waits for a wake-up: a text of 80 tokens took twice as
long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

SOFT = 1  # omp_pause_soft of OpenMP 5.0, omp.h


def releaser() -> Callable[[], object]:
    """A function that ends the calling thread's OpenMP threads; its next product starts them again.

    On 2 cores, ending them takes 45 us and starting one takes 70 us. Does nothing if torch computes without libgomp.
    """
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    files = {line.split(maxsplit=5)[-1] for line in maps if "libgomp" in line}
    for file in files:
        pause = getattr(ctypes.CDLL(file), "omp_pause_resource_all", None)
        if pause is not None:
            return lambda: pause(SOFT)
    return lambda: None
