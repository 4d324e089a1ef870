"""What this machine is: processor, cores, and the precisions it computes natively. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# CPU flags of /proc/cpuinfo that mean native matrix products; without them a precision is emulated.
NATIVE_CPU_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}
CPUINFO = Path("/proc/cpuinfo")
DEVICES = Path("/dev")


def cpu_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """The first CPU's instruction set flags; empty where there is no /proc."""
    return set(_first(cpuinfo, ("flags", "Features")).split())


def cpu_precisions(cpuinfo: Path = CPUINFO) -> list[str]:
    """What this CPU computes natively, fp32 first."""
    flags = cpu_flags(cpuinfo)
    return ["fp32"] + [name for name, needed in NATIVE_CPU_FLAGS.items() if flags & needed]


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, without loading anything that could use it."""
    return any(DEVICES.glob("nvidia[0-9]*"))


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> str:
    """One line for reports: processor, cores, memory, kernel."""
    name = _first(CPUINFO, ("model name", "CPU part")) or platform.processor()
    flags = ", ".join(sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni"}))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {cores()} cores ({flags}), {memory:.0f} GiB, Linux {platform.release()}"


def _first(cpuinfo: Path, keys: tuple[str, ...]) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(keys)), "")
