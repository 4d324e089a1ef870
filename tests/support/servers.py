"""Real servers for tests: started like a user's, on free ports; tests prove that nothing of them is left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.options import Address
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep.inference import wait_until_healthy
from build_scripts.serving.keep.run_directory import run_directory
from build_scripts.serving.start.installation import embedded_wheel, perf_analyzer_environment
from tests.support.waiting import HANG_S, wait_for

# A start may build a release first, and other tests may hold the cores.
START_LIMIT_S = 600.0
# Whether the test that runs is marked as one that needs a server; see tests/conftest.py.
may_start = True


@dataclass
class RunningServer:
    """A supervised server. process: the supervisor."""

    process: subprocess.Popen
    address: Address
    output: Path

    @property
    def http(self) -> str:
        return self.address.http_url

    @property
    def grpc(self) -> str:
        return self.address.grpc_url

    @property
    def mark(self) -> str:
        """A part of the command lines of tritonserver and its stubs, and of the names of their shared memory."""
        return f"text_classifier_{self.process.pid}_"

    def family(self) -> list[psutil.Process]:
        """tritonserver and its stubs, also after the supervisor has ended."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if self.mark in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def find(self, word: str) -> psutil.Process:
        """The process with this word in its command line: "bin/tritonserver", "tokenizer/1", "classifier/1"."""
        own = [p for p in self.family() if word in " ".join(p.cmdline()[:2])]
        assert len(own) == 1, f"{word}: {[p.cmdline() for p in self.family()]}"
        return own[0]

    def shared_memory(self) -> list[Path]:
        """The segments of this server's python backends."""
        return list(Path("/dev/shm").glob(f"{self.mark}*"))

    def is_gone(self) -> bool:
        return not self.family() and not self.shared_memory()

    def remove(self) -> None:
        """End and delete all that is left after a failed test."""
        self.process.kill()  # first, or it starts another
        self.process.wait()
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for segment in self.shared_memory():
            segment.unlink(missing_ok=True)
        shutil.rmtree(run_directory(self.address.http_port), ignore_errors=True)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = HANG_S) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def start(
    repository: Path,
    output: Path,
    *arguments: str,
    address: Address | None = None,
    within: Sequence[str] = (),
    output_to: int | None = None,
) -> RunningServer:
    """`python -m build_scripts serve`, not waited for. within: a command that runs the one behind it.

    output_to: instead of the file, such as `subprocess.PIPE`.
    """
    assert may_start, "this test starts a server: mark it with @pytest.mark.server, so that `make check` leaves it out"
    address = address or Address("127.0.0.1", *free_ports(3))
    command = [
        *within,
        *(sys.executable, "-m", "build_scripts", "serve", "--model-repository", str(repository)),
        *("--http-port", str(address.http_port), "--grpc-port", str(address.grpc_port)),
        *("--metrics-port", str(address.metrics_port), *arguments),
    ]
    with output.open("wb") as file:
        target = file if output_to is None else output_to
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=target, stderr=subprocess.STDOUT
        )
    return RunningServer(process, address, output)


@contextlib.contextmanager
def running(repository: Path, output: Path, *arguments: str, within: Sequence[str] = ()) -> Iterator[RunningServer]:
    """A server that answers. At the end it is stopped, and its processes and shared memory must be gone."""
    server = start(repository, output, *arguments, within=within)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not wait_until_healthy(server.http, 1.0).healthy:
            assert server.process.poll() is None, server.said()
            assert time.monotonic() < deadline, server.said()
        yield server
        if server.process.poll() is None:
            assert server.stop() == 0, server.said()
        wait_for(server.is_gone, lambda: f"{server.family()} {server.shared_memory()}", limit_s=5)
    finally:
        server.remove()


def embedded() -> bool:
    """Whether the server under test is the embedded one, whose classifier has its own process."""
    return shutil.which("tritonserver") is None  # as the launcher chooses


# NVIDIA's pytorch backend computes inside tritonserver: there is no process to look at, kill or stop.
classifier_process = pytest.mark.skipif(not embedded(), reason="no classifier process: NVIDIA's backend has none")


def perf_analyzer_failure(url: str, model: str, *arguments: str, within: Sequence[str] = ()) -> str | None:
    """Output of perf_analyzer if requests to a model fail, else None. url: HTTP's, or gRPC's beside `-i grpc`.

    within: a command that runs the one behind it.
    """
    program = str(Path(sys.executable).with_name("perf_analyzer"))
    command = [*within, program, "-m", model, "-u", url.removeprefix("http://"), "--request-count", "20"]
    environment = {**os.environ, **perf_analyzer_environment(embedded_wheel())}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=HANG_S)
    said = done.stdout + done.stderr
    return None if done.returncode == 0 and "Throughput:" in said and "Failed" not in said else said


def post(url: str, body: bytes | dict, headers: dict[str, str] | None = None, timeout_s: float = HANG_S):
    """POST with a plain HTTP client; returns status and body."""
    import httpx

    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(url, content=content, headers=headers, timeout=timeout_s)
    return response.status_code, response.content
