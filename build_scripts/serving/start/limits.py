"""Limits of this process that keep a server from running, found before it starts and blames something else."""

from __future__ import annotations

import mmap
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_scripts.core import machine
from build_scripts.core.errors import ServingError

MIB, GIB = 1 << 20, 1 << 30
# With 64 the server never answers; each connection takes one more.
FEWEST_FILES = 128
# Stack of each thread of the server. Address space only: enough for request bodies of several hundred MiB.
STACK_BYTES = GIB
# Triton 2.51 recurses over a request's body, and ends where the stack does. Measured: 4 MiB overran 8, and 60 MiB 112.
STACK_PER_BODY = 2
LEAST_STACK_BYTES = 16 * MIB
# Where address space is limited: what a process of the server gets besides its stacks, and the most stacks that it may
# have. On 2 cores tritonserver has 100 threads; gRPC and oneDNN start more on more cores.
OTHER_BYTES, THREADS = 4 * GIB, 128 + 8 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class Finding:
    """advice: what to do, empty if nothing."""

    name: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        state = "fix" if self.advice else "ok "
        return f"{state}  {self.name:11}  {self.found}" + (f": {self.advice}" if self.advice else "")


def check_limits() -> None:
    """Raise ServingError for the first limit under which no server runs."""
    for finding in (open_files(), *surroundings()):
        if finding.advice:
            raise ServingError(f"{finding.found}; {finding.advice}")


def surroundings() -> Iterator[Finding]:
    yield address_space()
    yield generated_code()
    yield whole_proc()


def open_files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FEWEST_FILES:
        found = f"this process may open {hard} files (`ulimit -Hn`), and tritonserver needs {FEWEST_FILES}"
        return Finding("open files", found, "raise the limit; each connection takes one more")
    return Finding("open files", "enough")


def address_space() -> Finding:
    """The limit of `ulimit -v`, LimitAS= of systemd."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return Finding("addresses", "no limit of address space")
    least = -(-(OTHER_BYTES + THREADS * LEAST_STACK_BYTES) // GIB)
    found = f"address space is limited to {limit / GIB:.1f} GiB (`ulimit -v`, LimitAS=)"
    if limit < least * GIB:
        return Finding("addresses", found, f"raise it to {least} GiB, or limit memory by a cgroup instead")
    largest = stack_bytes() // STACK_PER_BODY // MIB
    return Finding("addresses", f"{found}: request bodies over {largest} MiB may end the server")


def stack_bytes() -> int:
    """Stack of each thread of the server: all of them fit into the address space."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return STACK_BYTES
    return max(LEAST_STACK_BYTES, min(STACK_BYTES, (limit - OTHER_BYTES) // THREADS // MIB * MIB))


def generated_code() -> Finding:
    """Whether pages may be written and executed: oneDNN and FBGEMM write their machine code at run time."""
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        found = f"memory may not be writable and executable ({error.strerror})"
        advice = "torch writes machine code at run time: remove MemoryDenyWriteExecute= from the unit, or the like"
        return Finding("code", found, advice)
    return Finding("code", "may be generated at run time")


def whole_proc(proc: Path = machine.CPUINFO.parent) -> Finding:
    """Whether /proc shows the machine, not only processes."""
    hidden = [name for name in ("cpuinfo", "meminfo", "stat") if not (proc / name).exists()]
    if hidden:
        found = f"{', '.join(str(proc / name) for name in hidden)} cannot be read"
        advice = "mount all of /proc: remove ProcSubset=pid from the unit, or the like"
        return Finding("proc", found, advice)
    return Finding("proc", "shows the machine")
