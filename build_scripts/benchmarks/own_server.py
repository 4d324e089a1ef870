"""Servers that a benchmark starts for itself, supervised as `make serve` starts them, and stops afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from build_scripts.benchmarks import subprocesses
from build_scripts.core.options import Address, BuildOptions
from build_scripts.serving.start.start_message import READY

READY_LIMIT_S = 300.0


def free_address() -> Address:
    return Address("127.0.0.1", *subprocesses.free_ports(3))


def arguments(options: BuildOptions, address: Address, cache: str = "") -> list[str]:
    """For `python -m build_scripts serve`."""
    asked = {
        "--model": options.model,
        "--max-length": options.max_length,
        "--precision": options.precision,
        "--calibration": options.calibration,
        "--model-repository": options.repository,
        "--host": address.host,
        "--http-port": address.http_port,
        "--grpc-port": address.grpc_port,
        "--metrics-port": address.metrics_port,
        "--cache": cache,
    }
    return [str(part) for option, value in asked.items() if value for part in (option, value)]


@contextlib.contextmanager
def serving(asked: list[str], log: Path) -> Iterator[int]:
    """The process id of a supervisor whose server is ready: it answers, and has warmed up."""
    with subprocesses.running("build_scripts", ["serve", *asked], log) as process:
        subprocesses.wait_until(
            lambda: READY in log.read_text(encoding="utf-8", errors="replace"), process.poll, log, READY_LIMIT_S
        )
        yield process.pid
