"""Names for directories that Triton's python backend understands, whatever blanks and letters their own have.

It starts its stubs through a shell without quoting anything, and the Python inside them reads paths as ASCII. The name
that the kernel gives an open directory of ours is plain, needs nothing on the disk, and goes with this process.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

# No colon, which separates the entries of a search path.
PLAIN = re.compile(r"[\w./+@%=,-]+", re.ASCII)


@cache
def plain(directory: Path) -> str:
    """The directory's path if that is plain, else another name of it, as long as this process lives."""
    path = str(directory.resolve())
    if PLAIN.fullmatch(path):
        return path
    return f"/proc/{os.getpid()}/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY)}"
