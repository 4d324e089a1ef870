"""Check whether a repository can be served on this machine: one line per check, ok or what to do. Changes nothing.

    python -m build_scripts.serving.doctor --model-repository /models

Uses the standard library only: it runs in a container, and where other packages cannot be imported.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build_scripts.core import machine
from build_scripts.core.command_line import command, run
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.core.paths import BUILD, PROJECT, SOURCE_REPOSITORY
from build_scripts.releases import models, store
from build_scripts.serving.keep.run_state import read_state
from build_scripts.serving.start.environment import threads
from build_scripts.serving.start.limits import STACK_BYTES, Finding, surroundings
from build_scripts.serving.start.thread_settings import ONE_FOR_ALL, differing_threads

# Releases of torch that read and ran a file of torch 2.13. 1.13 lacks two of its operators.
TORCH_READS, TORCH_READ_BY = (2, 1), "2.1.2, 2.5.1 and 2.13"
SHARED_MEMORY = Path("/dev/shm")
MIB = 1 << 20
# Triton's Python processes exchange tensors through it: 1 MiB each at the start, more for batches in flight.
SHARED_MEMORY_BYTES = 48 * MIB
# Triton's python backend and the run directory (state, log) write a few MiB.
TEMPORARY_BYTES = 16 * MIB
OPEN_FILES = 1024
# e_machine of an ELF file, its bytes 18 and 19.
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


def examine(repository: Path, address: Address) -> Iterator[Finding]:
    """All findings, the repository's first."""
    names = store.names(repository)
    live = [store.live_release(repository, name) for name in names]
    if not live:
        yield Finding("repository", f"{repository} holds no built release", "run `make repo`, or name another")
    kind = "package" if store.is_package(repository) else "repository"
    for manifest in [store.read_manifest(directory) for directory in live if directory]:
        yield Finding("repository", f"{kind} {repository}, release {manifest['release']} of {manifest['checkpoint']}")
        yield torch_reads(manifest["versions"]["torch"])
        yield precision_is_native(manifest["precision"])
    for name in names:
        if file := models.damaged_file(repository, name):
            yield Finding("files", f"{file} is not the file that the release was built with", "run `make repo` again")
    if live:
        yield from tokenizers_loads(repository)
    yield from (shared_memory(), *temporary(), stack(), open_files(), *surroundings(), cores(max(1, len(live))))
    yield from threads_of_classifiers(repository, names)
    yield from ports(address)
    yield metrics(address)


def torch_reads(written_by: str) -> Finding:
    """Whether the installed torch can read model.pt."""
    name = f"model.pt was written by torch {written_by}"
    if shutil.which("tritonserver"):
        return Finding(
            "torch", f"{name}; tritonserver on PATH brings another libtorch (read by {TORCH_READ_BY} so far)"
        )
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return Finding("torch", f"{name}, and none is installed", "run `make install`, or use NVIDIA's container")
    numbers = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    if numbers < TORCH_READS:
        return Finding(
            "torch", f"{name}, installed is {installed}", f"use 2.1 or newer; known to read it: {TORCH_READ_BY}"
        )
    return Finding("torch", f"{name}, installed is {installed}")


def tokenizers_loads(repository: Path) -> Iterator[Finding]:
    """The copies of the tokenizers package, which the server's Python imports."""
    for library in sorted(models.tokenizers_libraries(repository)):
        content = library.read_bytes()
        made_for = ELF_MACHINES.get(int.from_bytes(content[18:20], "little"), "another processor")
        if made_for != platform.machine():
            found = f"the copy is for {made_for}, this is {platform.machine()}"
            yield Finding("tokenizers", found, "build and package the repository on such a machine")
            continue
        needed = max(tuple(map(int, match)) for match in re.findall(rb"GLIBC_(\d+)\.(\d+)", content))
        name, found_version = platform.libc_ver()
        have = tuple(map(int, found_version.split(".")[:2])) if name == "glibc" else (0, 0)
        found = f"the copy needs glibc {needed[0]}.{needed[1]}, this is {name or 'another C library'} {found_version}"
        if have < needed:
            yield Finding("tokenizers", found, "use a newer system")
            continue
        code = f"import sys; sys.path.insert(0, {str(library.parents[1])!r}); import tokenizers"
        done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Finding(
                "tokenizers", f"Python {platform.python_version()} cannot load the copy ({reason})", "use 3.10+"
            )
        else:
            yield Finding("tokenizers", f"{found}; Python {platform.python_version()} loads it")


def precision_is_native(precision: str) -> Finding:
    if precision in machine.cpu_precisions() or machine.has_gpu():
        return Finding("precision", f"{precision}, native here")
    native = ", ".join(machine.cpu_precisions())
    return Finding("precision", f"{precision}, which this CPU emulates", f"slow; rebuild with one of {native}, or auto")


def shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        return Finding(
            "/dev/shm",
            str(error.strerror),
            "mount a tmpfs there; Triton needs it for its Python processes",
        )
    found = f"{usage.free // MIB} of {usage.total // MIB} MiB free"
    if usage.free < SHARED_MEMORY_BYTES:
        return Finding("/dev/shm", found, f"{SHARED_MEMORY_BYTES // MIB} are needed: --shm-size, or a memory emptyDir")
    return Finding("/dev/shm", found)


def temporary() -> Iterator[Finding]:
    """Free space where a server writes: its run directory, which in a container lies in /tmp, and TMPDIR."""
    run = BUILD / "serve"
    for directory in {(run if run.exists() else PROJECT).resolve(), Path(os.environ.get("TMPDIR") or "/tmp").resolve()}:
        try:
            free = shutil.disk_usage(directory).free
        except OSError as error:
            yield Finding("disk", f"{directory}: {error.strerror}", "make it a directory that can be written to")
            continue
        found = f"{directory} has {free // MIB} MiB free"
        advice = f"{TEMPORARY_BYTES // MIB} are needed; remove files there" if free < TEMPORARY_BYTES else ""
        yield Finding("disk", found, advice)


def stack() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY and hard < STACK_BYTES:
        advice = "long requests may end the server; raise it to 1 GiB: --ulimit stack=1073741824"
        return Finding("stack", f"at most {hard // MIB} MiB", advice)
    return Finding("stack", "may be 1 GiB; the launcher sets it")


def open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        return Finding("open files", f"at most {soft}", f"a connection takes one; `ulimit -n {OPEN_FILES}` or more")
    return Finding("open files", f"at most {soft} (hard limit {hard})")


def cores(classifiers: int) -> Finding:
    """Threads of each classifier, and the reason."""
    allowed, quota, used = len(os.sched_getaffinity(0)), machine.cpu_quota(), machine.cores()
    found = f"{allowed} of {os.cpu_count()} may be used, " + (f"quota {quota:g}" if quota else "no quota")
    own = os.environ.get("OMP_NUM_THREADS", "")
    if own.isdecimal() and int(own) > used:
        return Finding("cores", found, f"OMP_NUM_THREADS={own} is more than {used}; unset it")
    given = f"{own or threads(classifiers)} threads"
    given += f" for each of {classifiers} classifiers" if classifiers > 1 else ""
    return Finding("cores", f"{found}: {given}" + (" (OMP_NUM_THREADS)" if own else ""))


def threads_of_classifiers(repository: Path, names: list[str]) -> Iterator[Finding]:
    if shutil.which("tritonserver") and (found := differing_threads(repository, names)):
        yield Finding("threads", found, ONE_FOR_ALL)


def ports(address: Address) -> Iterator[Finding]:
    pid, held = 0, set[int]()
    with contextlib.suppress(ServingError):  # no server there, or another user's
        running = read_state(address.http_port)
        pid, held = running.pid, running.ports
    for name, port in address.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError as error:
                if port in held:
                    yield Finding("port", f"{address.host}:{port} is the running server's own, process {pid}")
                else:
                    yield Finding("port", f"{address.host}:{port} ({error.strerror})", f"choose another with {name}=…")
            else:
                yield Finding("port", f"{address.host}:{port} is free for {name}")


def metrics(address: Address) -> Finding:
    """Whether the tokenizer can read the number of pending requests; without it no request is refused."""
    where = os.environ.get("TRITON_METRICS_ADDRESS", address.metrics_address)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError):
        with opener.open(f"http://{where}/metrics", timeout=2) as response:
            seen = b"nv_inference_pending_request_count" in response.read()
        if seen:
            return Finding("metrics", f"http://{where}/metrics shows how many requests wait")
        return Finding(
            "metrics", f"http://{where}/metrics is not Triton's", "set TRITON_METRICS_ADDRESS, or METRICS_PORT"
        )
    return Finding("metrics", f"nothing listens on {where} now; a server with METRICS_PORT will")


def report(repository: Path, address: Address) -> int:
    """Print all findings; 1 if one has advice."""
    findings = []
    for finding in examine(repository, address):
        print(finding, flush=True)
        findings.append(finding)
    return int(any(finding.advice for finding in findings))


@command("python -m build_scripts doctor --model-repository build/package/model_repository")
def doctor(address: Address, repository: Path = SOURCE_REPOSITORY) -> int:
    """Check whether the repository can be served on this machine: one line per check, ok or what to do."""
    return report(repository.absolute(), address)


if __name__ == "__main__":
    sys.exit(run(doctor, program="python -m build_scripts.serving.doctor"))
