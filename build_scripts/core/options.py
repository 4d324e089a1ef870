"""Options of the command line, each once: variable, help and limit; and the dataclasses that commands are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import Columns
from build_scripts.core.names import ENSEMBLE, check_name
from build_scripts.core.paths import SOURCE_REPOSITORY

# Tokens per text. Longest: a single text cannot be split into parts, so it delays all others, for seconds at this
# length. Default: BERT's limit, and what a CPU answers in a fraction of a second. Shortest: one token between two
# special ones.
LONGEST_MAX_LENGTH, DEFAULT_MAX_LENGTH, SHORTEST_MAX_LENGTH = 8192, 512, 3
# Tokens that neighbouring windows of a document share; a longer sentence may be cut in both.
DEFAULT_STRIDE = 64

# `make serve HTTP_PORT=9000` sets TRITON_TC_HTTP_PORT: environments use the bare names for other things.
VARIABLE_PREFIX = "TRITON_TC_"
# Variables of the Makefile and install.sh, which make hands on with the others.
INSTALL_VARIABLES = ("PYTHON", "INDEX_URL", "TORCH_INDEX", "VENV", "TRITONSERVER")

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
POOLINGS = ("mean", "max")


@dataclass(frozen=True)
class Option:
    """variable: of make. flag: of the command line, by default the variable in lower case."""

    variable: str
    help: str
    minimum: float | None = None
    flag: str = ""

    def __post_init__(self) -> None:
        if not self.flag:
            object.__setattr__(self, "flag", "--" + self.variable.lower().replace("_", "-"))


# field or parameter of a command -> its option
OPTIONS = {
    "model": Option("MODEL", "checkpoint directory or hub id; default: the embedded one"),
    "tokenizer": Option("TOKENIZER", "directory of the tokenizer, if it is not in MODEL"),
    "name": Option("NAME", "one of the repository's classifiers"),
    "max_length": Option("MAX_LENGTH", "tokens per text, at most 8192; default: the checkpoint's limit, at most 512"),
    "documents": Option("DOCUMENTS", "mean or max: read longer texts whole, in windows whose answers are pooled"),
    "stride": Option("STRIDE", f"tokens that the windows of DOCUMENTS share; default: {DEFAULT_STRIDE}", minimum=0),
    "precision": Option("PRECISION", f"one of {', '.join(PRECISIONS)}"),
    "calibration": Option("CALIBRATION", "file of texts for the precision gate, one per line"),
    "calibrate": Option("CALIBRATE", "labelled texts: fit a temperature to them, so that probabilities match accuracy"),
    "repository": Option("MODEL_REPOSITORY", "the model repository"),
    "host": Option("HOST", "address to listen on, or to ask"),
    "http_port": Option("HTTP_PORT", "HTTP port"),
    "grpc_port": Option("GRPC_PORT", "gRPC port"),
    "metrics_port": Option("METRICS_PORT", "metrics port"),
    "drain": Option("DRAIN", "seconds to keep serving after SIGTERM while readiness fails", minimum=0),
    "trace": Option("TRACE", "OTLP receiver for Triton's traces, such as http://127.0.0.1:4318"),
    "cache": Option("CACHE", "memory for answers to repeated texts, such as 64M; default: no cache"),
    "log": Option("LOG", "text, or json: JSON lines on standard output, Triton's log among them"),
    "certificate": Option("TLS_CERT", "certificate of this side for gRPC, a PEM file"),
    "key": Option("TLS_KEY", "key of TLS_CERT, a PEM file"),
    "authority": Option("TLS_CA", "authority to trust, a PEM file: for clients (serve), for the server (classify)"),
    "text": Option("TEXT", "one text"),
    "pair": Option("PAIR", "second text, for a classifier of pairs"),
    "file": Option("FILE", "file of texts, one per line; a tab separates the two texts of a pair; - reads stdin"),
    "text_column": Option("TEXT_COLUMN", "column or key of the text"),
    "pair_column": Option("PAIR_COLUMN", "column or key of the second text"),
    "label_column": Option("LABEL_COLUMN", "column or key of the label"),
    "release_id": Option("RELEASE", "id of a release on the disk, from `make status`"),
    "evaluate": Option("EVALUATE", "labelled texts: refuse a release that is worse on them than the live one"),
    "worse_by": Option("WORSE_BY", "accuracy that EVALUATE lets a release lose", minimum=0),
    "output": Option("OUTPUT", "directory to write; replaces an earlier package"),
    "device": Option("DEVICE", "cpu: two classifier instances, for NVIDIA's backend on a CPU; default: as configured"),
    "url": Option("URL", "HTTP address of the server, instead of HOST and HTTP_PORT"),
    "timeout": Option("TIMEOUT", "seconds to wait for an answer", minimum=0),
    "live": Option("LIVE", "liveness probe: exit 0 as long as the server lives"),
    "seconds": Option("SECONDS_PER_LEVEL", "seconds per level, service or variant", minimum=0.1, flag="--seconds"),
    "duration": Option("DURATION", "seconds in all, at least 30"),
    "aim": Option("AIM", "latency (of one client) or throughput (of many)"),
    "p99_ms": Option("P99_MS", "maximum p99 under load, in milliseconds", minimum=0.1),
}


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
    """Options of a build. model: directory, hub id, or "" for the embedded checkpoint. name: of the classifier.

    tokenizer: its directory, if it is not the model's. documents, stride: how texts of more than max_length tokens are
    read whole, "" to truncate them. The columns are those of labelled files: of CSV, of a TSV with a
    header, and the keys of JSON lines.
    """

    model: str = ""
    max_length: int | None = None
    precision: str = "auto"
    calibration: Path | None = None
    repository: Path = field(default=SOURCE_REPOSITORY)
    name: str = ENSEMBLE
    tokenizer: Path | None = None
    calibrate: Path | None = None
    text_column: str = Columns.text
    pair_column: str = Columns.pair
    label_column: str = Columns.label
    documents: str = ""
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.documents not in ("", *POOLINGS):
            raise ServingError(f"DOCUMENTS={self.documents}; expected one of {', '.join(POOLINGS)}")
        if self.stride is not None and not self.documents:
            raise ServingError(f"STRIDE={self.stride}: DOCUMENTS is missing; expected one of {', '.join(POOLINGS)}")
        if self.tokenizer is not None and not (self.model and self.tokenizer.is_dir()):
            fault = "no such directory" if self.model else "MODEL is missing"
            raise ServingError(
                f"TOKENIZER={self.tokenizer}: {fault}; expected a directory with tokenizer.json, and MODEL"
            )
        if self.precision not in PRECISIONS:
            raise ServingError(f"PRECISION={self.precision}; expected one of {', '.join(PRECISIONS)}")
        if self.calibration is not None and not self.calibration.is_file():
            raise ServingError(f"CALIBRATION={self.calibration}: no such file; expected texts, one per line")
        if self.calibrate is not None and not self.calibrate.is_file():
            raise ServingError(f"CALIBRATE={self.calibrate}: no such file; expected labelled texts")
        check_name(self.name)
        object.__setattr__(self, "repository", self.repository.absolute())

    @property
    def window_stride(self) -> int:
        return DEFAULT_STRIDE if self.stride is None else self.stride

    @property
    def columns(self) -> Columns:
        return Columns(self.text_column, self.pair_column, self.label_column)


@dataclass(frozen=True)
class ClassifyOptions:
    """text: one text, with or without its pair. file: path of texts. Either text or file is given."""

    text: str | None = None
    pair: str | None = None
    file: str | None = None
    name: str = ENSEMBLE
