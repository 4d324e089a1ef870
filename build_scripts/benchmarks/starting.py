"""How long a server takes from its start to its first answer, with its files on the disk and in the page cache.

A node that never ran the service reads some 500 MB of libraries and the weights; a restart finds them in memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from build_scripts.benchmarks import subprocesses
from build_scripts.core.options import Address
from build_scripts.serving.keep import health


def seconds_to_answer(arguments: list[str], address: Address, log: Path, limit_s: float) -> float:
    """Of a server that is started for it, and stopped."""
    began = time.monotonic()
    with subprocesses.running("build_scripts", ["serve", *arguments], log) as process:
        subprocesses.wait_until(lambda: health.probe(address.http_url, 1.0).well, process.poll, log, limit_s)
        return time.monotonic() - began


def describe(arguments: list[str], address: Address, repository: Path, log: Path, limit_s: float) -> str:
    """Two starts, in words. A library that this process has loaded itself cannot be read anew; then there is one."""
    told = []
    if "torch" not in sys.modules:
        drop_from_page_cache([repository, Path(sys.prefix)])
        told.append(f"{seconds_to_answer(arguments, address, log, limit_s):.1f} s with its files on the disk")
    told.append(f"{seconds_to_answer(arguments, address, log, limit_s):.1f} s with its files in the page cache")
    return f"to the first answer {', '.join(told)}"


def drop_from_page_cache(directories: Iterable[Path]) -> None:
    """So that they are read from the disk next; what some process has mapped stays."""
    for path in (path for directory in directories for path in directory.rglob("*") if path.is_file()):
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(file)  # what is not written yet cannot be dropped
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
