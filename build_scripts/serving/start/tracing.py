"""Triton's own OpenTelemetry traces, as arguments for tritonserver. To collect them is another's job."""

from __future__ import annotations

from urllib.parse import urlsplit

from build_scripts.core.errors import ServingError

# A caller whose own trace goes on is always traced; of the others, one in so many.
RATE = 1000


def trace_arguments(url: str) -> list[str]:
    """url: of an OTLP/HTTP receiver, "" for no traces. Raises ServingError if it is none."""
    if not url:
        return []
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ServingError(f"TRACE={url}: expected an OTLP receiver, such as http://127.0.0.1:4318/v1/traces")
    settings = (
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        f"rate={RATE}",
        f"opentelemetry,url={url if parts.path.strip('/') else url.rstrip('/') + '/v1/traces'}",
        "opentelemetry,resource=service.name=text-classifier",
    )
    return [f"--trace-config={setting}" for setting in settings]
