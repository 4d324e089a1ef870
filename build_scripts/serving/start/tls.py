"""TLS for gRPC: what tritonserver is started with, and what a client needs to talk to it.

HTTP has no TLS in Triton; it stays on 127.0.0.1 then, for health and for a proxy on the same machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.errors import ServingError


@dataclass(frozen=True)
class Tls:
    """PEM files. For a server: its certificate and key, and the authority whose clients it takes, if it asks for
    certificates. For a client: the authority that it trusts, and its own certificate and key, if it is asked for one.
    """

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def __post_init__(self) -> None:
        """Raises ServingError for a file that cannot be read, and for half a pair."""
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


def tls_arguments(tls: Tls, host: str) -> list[str]:
    """For tritonserver. Raises ServingError if there is an authority and no certificate, or HTTP has no loopback."""
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
        # The last one counts.
        "--http-address=127.0.0.1",
    ]
