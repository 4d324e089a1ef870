"""Names, paths and defaults, each in one place. Imports nothing of ours and nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build"
OURS = PROJECT / "build_scripts"
DATA = OURS / "data"
# The texts that a precision is compared on, unless the user names a file.
CALIBRATION = DATA / "calibration.txt"
SOURCE_REPOSITORY = PROJECT / "model_repository"
PACKAGE = BUILD / "package"

# The models of the default classifier. Those of another are called by its name: see `Models`.
ENSEMBLE, TOKENIZER, CLASSIFIER = "text_classifier", "tokenizer", "classifier"
# How the names of ensembles begin whose answers are kept.
CACHED = "cached"
RELEASE_ID = "[0-9a-f]{12}"
# Not what a release's candidates are called: a model's name and the release's id.
NAME = re.compile(
    rf"(?!tokenizer|classifier|{CACHED}|text_classifier.)(?!(?:.*_)?{RELEASE_ID}$)[A-Za-z][A-Za-z0-9_]{{0,63}}"
)

# The longest input any BERT-shaped checkpoint takes, and the shortest that holds a token between the special ones.
LONGEST_MAX_LENGTH, SHORTEST_MAX_LENGTH = 512, 3

# `make serve HTTP_PORT=9000` hands the variable on as TRITON_TC_HTTP_PORT: environments use the bare names, too.
VARIABLE_PREFIX = "TRITON_TC_"

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class ServingError(Exception):
    """Something the user can act on: what was found, what was expected, what to do next."""


@dataclass(frozen=True)
class Models:
    """The three models of one classifier, whose name is the ensemble's.

    The kind comes first, so that no two classifiers' models have one name, and all of a kind begin alike.
    """

    ensemble: str = ENSEMBLE

    @property
    def tokenizer(self) -> str:
        return TOKENIZER if self.ensemble == ENSEMBLE else f"{TOKENIZER}_{self.ensemble}"

    @property
    def classifier(self) -> str:
        return CLASSIFIER if self.ensemble == ENSEMBLE else f"{CLASSIFIER}_{self.ensemble}"

    @property
    def all(self) -> tuple[str, str, str]:
        return self.tokenizer, self.classifier, self.ensemble


def is_model_or_candidate(model: str, name: str) -> bool:
    """Whether a model has the name, or is what a release loads beside the one that has it."""
    return re.fullmatch(f"{name}(_{RELEASE_ID})?", model) is not None


def is_cached(model: str, name: str) -> bool:
    """Whether a model keeps the answers of the classifier of that name."""
    return re.fullmatch(rf"{CACHED}_{name}_{RELEASE_ID}_\d+", model) is not None


def check_name(name: str) -> str:
    """The name of a classifier. Raises ServingError if it can be none."""
    if NAME.fullmatch(name):
        return name
    raise ServingError(
        f"NAME={name} cannot be a classifier's name; expected a letter, then letters, digits and underscores, at most "
        f"64, and nothing that begins with {TOKENIZER}, {CLASSIFIER}, {CACHED} or {ENSEMBLE}, or ends as a "
        "release's id does"
    )


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
