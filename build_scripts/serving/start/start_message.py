"""The message of `make serve` once the server answers: the model, the addresses, and an example request."""

from __future__ import annotations

import json
from pathlib import Path

from build_scripts.core.machine import cpu_precisions, has_gpu
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.releases.store import names, require_release
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.thread_settings import ONE_FOR_ALL, differing_threads

# Start of the message; the server is loaded, answers, and is warm.
READY = "ready: a real inference answered on "
EXAMPLE = json.dumps(
    {
        "inputs": [
            {
                "name": "TEXT",
                "shape": [1, 1],
                "datatype": "BYTES",
                "data": ["Midfielder scores twice as champions win away"],
            }
        ]
    }
)


def start_message(installation: Installation, repository: Path, address: Address) -> str:
    """All lines, for every classifier."""
    served = names(repository) or [ENSEMBLE]
    lines = ["", f"{READY}{address.http_url}", f"  server     {installation.description}"]
    for name in served:
        lines += describe(require_release(repository, name), f"{address.http_url}/v2/models/{name}")
    if not installation.embedded and (found := differing_threads(repository, names(repository))):
        lines.append(f"  warning    {found}; {ONE_FOR_ALL}")
    lines += [
        f"  gRPC       {address.grpc_url}",
        f"  metrics    http://{address.metrics_address}/metrics",
        # Not `generate`: it answers 400 under overload, and clients retry only 503.
        f"  try        curl -s {address.http_url.removeprefix('http://')}/v2/models/{served[0]}/infer -d '{EXAMPLE}'",
        "",
    ]
    return "\n".join(lines)


def describe(manifest: dict, url: str) -> list[str]:
    """The lines of one classifier."""
    lines = [
        f"  model      {manifest['checkpoint']} ({manifest['architecture']}, release {manifest['release']})",
        f"  precision  {manifest['precision']}",
        f"  labels     {', '.join(manifest['labels'])}",
        f"  HTTP       {url}",
    ]
    if manifest["precision"] not in cpu_precisions() and not has_gpu():
        lines.append(f"  warning    this CPU emulates {manifest['precision']}: slow; rebuild with PRECISION=auto")
    return lines
