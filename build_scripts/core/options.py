"""What commands are asked for: the address of a server, the options of a build, and their limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.paths import SOURCE_REPOSITORY

# The longest input any BERT-shaped checkpoint takes, and the shortest that holds a token between the special ones.
LONGEST_MAX_LENGTH, SHORTEST_MAX_LENGTH = 512, 3

# `make serve HTTP_PORT=9000` hands the variable on as TRITON_TC_HTTP_PORT: environments use the bare names, too.
VARIABLE_PREFIX = "TRITON_TC_"

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Address:
    """Where a server listens, and where its clients find it."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    def __post_init__(self) -> None:
        for name, port in self.ports.items():
            if not 1 <= port <= 65535:
                raise ServingError(f"{name}={port} is no port; expected a number from 1 to 65535")

    @property
    def ports(self) -> dict[str, int]:
        return {"HTTP_PORT": self.http_port, "GRPC_PORT": self.grpc_port, "METRICS_PORT": self.metrics_port}

    @property
    def client_host(self) -> str:
        """The host that a local client connects to: a wildcard address is no destination."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def http_url(self) -> str:
        return f"http://{self.client_host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{self.client_host}:{self.grpc_port}"

    @property
    def metrics_address(self) -> str:
        return f"{self.client_host}:{self.metrics_port}"


@dataclass(frozen=True)
class BuildOptions:
    """What `make repo` was asked for. model: directory, hub id or "" for the embedded one. name: the classifier's."""

    model: str = ""
    max_length: int | None = None
    precision: str = "auto"
    calibration: Path | None = None
    repository: Path = field(default=SOURCE_REPOSITORY)
    name: str = ENSEMBLE
