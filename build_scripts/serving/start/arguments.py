"""Arguments of tritonserver that one option of `make serve` needs: TLS_*, TRACE, CACHE. And names for directories."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address

# Triton traces every request whose caller traces it; of the others, one in this many.
TRACE_RATE = 1000
CACHE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Smallest cache. An answer takes hundreds of bytes; with thousands of labels, tens of thousands.
LEAST_CACHE_BYTES = 1 << 20
# Characters that need no quotes in a shell; no colon, which separates the entries of a search path.
PLAIN = re.compile(r"[\w./+@%=,-]+", re.ASCII)


@dataclass(frozen=True)
class ServerOptions:
    """drain: seconds. trace: address of an OTLP/HTTP receiver, "" for no traces. cache: size, "" for no cache.

    log: "text", or "json" for JSON lines on standard output, Triton's log among them.
    """

    drain: float = 0.0
    trace: str = ""
    cache: str = ""
    log: str = "text"

    def __post_init__(self) -> None:
        if self.log not in ("text", "json"):
            raise ServingError(f"LOG={self.log}: expected text or json")


@dataclass(frozen=True)
class Tls:
    """PEM files. A server has a certificate and a key; an authority, if clients must show certificates. A client has
    the authority that it trusts; a certificate and a key, if the server asks for them.
    """

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def __post_init__(self) -> None:
        """Raise ServingError for a file that cannot be read, and for a certificate without a key."""
        for name, file in {"TLS_CERT": self.certificate, "TLS_KEY": self.key, "TLS_CA": self.authority}.items():
            try:
                pem = file is None or b"-----BEGIN" in file.read_bytes()
            except OSError as error:
                raise ServingError(f"{name}={file}: {error.strerror}; expected a PEM file") from error
            if not pem:
                raise ServingError(f"{name}={file} is no PEM file; expected one with -----BEGIN …")
        if (self.certificate is None) != (self.key is None):
            raise ServingError("TLS_CERT and TLS_KEY belong together; give both")

    def __bool__(self) -> bool:
        return self.certificate is not None or self.authority is not None


def option_arguments(options: ServerOptions, tls: Tls, address: Address) -> list[str]:
    """Arguments for tritonserver. Raises ServingError for a value that it could not use."""
    if options.cache and tls:
        raise ServingError("CACHE is switched on over gRPC without TLS; leave out CACHE, or TLS_CERT")
    return [
        *trace_arguments(options.trace),
        *cache_arguments(options.cache),
        *tls_arguments(tls, address.host),
    ]


def tls_arguments(tls: Tls, host: str) -> list[str]:
    """TLS for gRPC. Triton has none for HTTP, which stays on 127.0.0.1 for health checks and a local proxy."""
    if not tls:
        return []
    if tls.certificate is None:
        raise ServingError("TLS_CA alone makes no TLS server; give TLS_CERT and TLS_KEY, too")
    if host not in ("127.0.0.1", "0.0.0.0"):
        raise ServingError(
            f"HOST={host} with TLS: HTTP stays on 127.0.0.1, so expected that, or 0.0.0.0 for gRPC on all"
        )
    mutual = [f"--grpc-root-cert={tls.authority}", "--grpc-use-ssl-mutual=true"] if tls.authority else []
    return [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={tls.certificate}",
        f"--grpc-server-key={tls.key}",
        *mutual,
        # Triton takes the last --http-address.
        "--http-address=127.0.0.1",
    ]


def trace_arguments(url: str) -> list[str]:
    """Triton's own OpenTelemetry traces, for an OTLP/HTTP receiver that runs elsewhere."""
    if not url:
        return []
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServingError(f"TRACE={url}: expected an OTLP receiver, such as http://127.0.0.1:4318/v1/traces")
    settings = (
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        f"rate={TRACE_RATE}",
        f"opentelemetry,url={url if parts.path.strip('/') else url.rstrip('/') + '/v1/traces'}",
        "opentelemetry,resource=service.name=text-classifier",
    )
    return [f"--trace-config={setting}" for setting in settings]


def cache_arguments(size: str) -> list[str]:
    """Triton's own response cache; `swap.answer_cache` says what it holds. size: such as 64M."""
    if not size:
        return []
    if importlib.util.find_spec("tritonclient") is None:
        raise ServingError("CACHE needs the package tritonclient, which is not installed here; leave out CACHE")
    found = re.fullmatch(r"(\d+)([KMG]?)", size.strip().upper())
    count = int(found[1]) * CACHE_UNITS[found[2]] if found else 0
    if count < LEAST_CACHE_BYTES:
        raise ServingError(f"CACHE={size}: expected the size of the cache, 1M at least, such as 64M or 1G")
    return [f"--cache-config=local,size={count}"]


@cache
def plain(directory: Path) -> str:
    """The directory's path, or a name without blanks and quotes that is valid while this process lives.

    The python backend of 2.51 starts its stubs through a shell without quoting, and the Python inside reads paths as
    ASCII. The kernel's name for an open directory is plain and needs nothing on the disk.
    """
    path = str(directory.resolve())
    if PLAIN.fullmatch(path):
        return path
    return f"/proc/{os.getpid()}/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY)}"
