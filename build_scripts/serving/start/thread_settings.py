"""Whether classifiers of one server ask for different numbers of threads, of which NVIDIA's backend uses one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from build_scripts.core.names import Models
from build_scripts.releases.store import CONFIG

INTRA_OP = re.compile(r'^[^#\n]*"INTRA_OP_THREAD_COUNT"[^#"]*string_value:\s*"(\d+)"', re.MULTILINE)
ONE_FOR_ALL = "NVIDIA's backend has one number for all, from 26.03 on that of the first one loaded: set it in all alike"


def differing_threads(repository: Path, names: Iterable[str]) -> str:
    """The numbers, by classifier; empty if all are equal."""
    wanted = {}
    for name in names:
        classifier = Models(name).classifier
        config = (repository / classifier / CONFIG).read_text(encoding="utf-8")
        wanted[classifier] = "".join(INTRA_OP.findall(config)) or "none"
    if len(set(wanted.values())) < 2:
        return ""
    return "INTRA_OP_THREAD_COUNT is " + ", ".join(f"{count} in {classifier}" for classifier, count in wanted.items())
