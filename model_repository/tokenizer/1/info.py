"""What runs in this replica, as labels of the metric text_classifier_info. A label without a value is left out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

# What decides about a classifier's speed on a CPU, on x86-64 and on ARM.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


def labels(parameters: Mapping[str, str]) -> dict[str, str]:
    """parameters: of config.pbtxt. A release adds its id and its precision."""
    return {
        **{name: parameters.get(name, "") for name in ("release", "precision")},
        # Only in the embedded server is torch a Python package: NVIDIA's backend links the library.
        "torch": installed("torch"),
        # In NVIDIA's container; `make serve` sets it for the embedded server.
        "triton": os.environ.get("TRITON_SERVER_VERSION", ""),
        "cpu": " ".join(cpu_features()),
    }


def installed(package: str) -> str:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return ""


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of FEATURES that the first CPU has; none without /proc."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return [feature for feature in FEATURES if feature in flags.split()]
    return []
