"""Triton's own response cache, as arguments for tritonserver. What is kept there: see `cached_ensemble`."""

from __future__ import annotations

import importlib.util
import re

from build_scripts.core.errors import ServingError

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# An answer takes hundreds of bytes, with thousands of labels tens of thousands.
LEAST = 1 << 20


def cache_arguments(size: str) -> list[str]:
    """size: such as 64M, "" for no cache. Raises ServingError if it is none, or if the cache cannot be switched on."""
    if not size:
        return []
    if importlib.util.find_spec("tritonclient") is None:
        raise ServingError("CACHE needs the package tritonclient, which is not installed here; leave out CACHE")
    found = re.fullmatch(r"(\d+)([KMG]?)", size.strip().upper())
    count = int(found[1]) * UNITS[found[2]] if found else 0
    if count < LEAST:
        raise ServingError(f"CACHE={size}: expected the bytes that answers may take, 1M at least, such as 64M or 1G")
    return [f"--cache-config=local,size={count}"]
