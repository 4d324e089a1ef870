"""This machine's processor, cores, memory, and native precisions. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

# Flags of /proc/cpuinfo, of which one is enough for native matrix products; otherwise the precision is emulated. On a
# CPU, fp16 means fp16 weights with fp32 activations; FBGEMM multiplies these with AVX2.
NATIVE_CPU_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx2"}}
CPUINFO = Path("/proc/cpuinfo")
DEVICES = Path("/dev")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Instruction set flags of the first CPU; empty without /proc."""
    return set(_first(cpuinfo, ("flags", "Features")).split())


def cpu_precisions(cpuinfo: Path = CPUINFO) -> list[str]:
    """Native precisions of this CPU, fp32 first."""
    flags = cpu_flags(cpuinfo)
    return ["fp32"] + [name for name, needed in NATIVE_CPU_FLAGS.items() if flags & needed]


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible; loads no driver."""
    return any(DEVICES.glob("nvidia[0-9]*"))


def cores() -> int:
    """Usable CPU cores: the size of the affinity mask, or the cgroup's CPU quota if it is smaller.

    torch and OpenMP ignore the quota: a pod with 2 CPUs on a node of 64 would start 64 threads, and the kernel would
    throttle them.
    """
    quota = cpu_quota()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """CPU quota of this process's cgroups, in CPUs; None without a limit."""
    read = {2: _quota_v2, 1: _quota_v1}
    quotas = [read[version](group) for version, group in _groups("cpu", root, own)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _groups(controller: str, root: Path, own: Path) -> Iterator[tuple[int, Path]]:
    """Yield each cgroup that may limit this process: its version and its directory.

    Covers both versions and every level up to the root, because the tightest limit counts. In a container, `own` often
    names a path of the host that the container cannot see; the root is then the container's group.
    """
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, tops = 2, [root, root / "unified"]
        elif controller in controllers.split(","):
            version, tops = 1, [root / controllers, root / controller]
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            for level in (group, *group.parents):
                if level == top or top in level.parents:
                    yield version, level


def _quota_v2(group: Path) -> float | None:
    """Quota in CPUs from cpu.max: "max 100000" is no limit, "200000 100000" is two CPUs."""
    words = " ".join(_lines(group / "cpu.max")).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(group: Path) -> float | None:
    """Quota in CPUs from cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit."""
    quota, period = (_lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None


def _lines(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8").splitlines()
    return []


def describe() -> str:
    """One line for reports: processor, cores, memory, kernel."""
    name = _first(CPUINFO, ("model name", "CPU part")) or platform.processor()
    flags = ", ".join(sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_vnni"}))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {cores()} cores ({flags}), {memory:.0f} GiB, Linux {platform.release()}"


def _first(cpuinfo: Path, keys: tuple[str, ...]) -> str:
    return next((line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith(keys)), "")
