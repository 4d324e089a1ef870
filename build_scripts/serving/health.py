"""Tell whether a server answers, by asking it something: the only test that a Triton ensemble cannot fake.

    python -m build_scripts.serving.health --url http://127.0.0.1:8000 --timeout 2

Triton's own readiness endpoints go on saying 200 after a model's process was killed. This module needs nothing but the
standard library, so that it can be the probe of a container.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
import urllib.error
from dataclasses import dataclass

from build_scripts.serving.local_http import open_url
from build_scripts.settings import ENSEMBLE, Address

PROBE_TEXT = "health"


@dataclass(frozen=True)
class Health:
    """overloaded: the server lives and refuses, because too many requests wait."""

    well: bool
    reason: str
    overloaded: bool = False


def probe(url: str, timeout_s: float) -> Health:
    """One inference over HTTP, within the timeout."""
    body = {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [PROBE_TEXT]}]}
    try:
        with open_url(f"{url}/v2/models/{ENSEMBLE}/infer", json.dumps(body).encode(), timeout_s=timeout_s) as response:
            outputs = {output["name"]: output for output in json.load(response)["outputs"]}
        return Health(True, f"class id {outputs['CLASS_ID']['data'][0]}")
    except urllib.error.HTTPError as error:
        return Health(False, f"HTTP {error.code}: {_message(error)}", overloaded=error.code == 503)
    except (OSError, http.client.HTTPException) as error:
        return Health(False, str(getattr(error, "reason", error)) or type(error).__name__)
    except (ValueError, KeyError, IndexError) as error:
        return Health(False, f"not an answer of {ENSEMBLE}: {error!r}")


def wait_until_well(url: str, timeout_s: float) -> Health:
    """Probe until an inference answers or the time is over; returns the last finding."""
    deadline = time.monotonic() + timeout_s
    while True:
        health = probe(url, max(0.1, deadline - time.monotonic()))
        if health.well or time.monotonic() >= deadline:
            return health
        time.sleep(0.05)


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read(500).decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Exit 0 only if a real inference answers.")
    parser.add_argument("--url", default=Address().http_url)
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds (default: 2)")
    arguments = parser.parse_args()
    health = wait_until_well(arguments.url, arguments.timeout)
    print(f"{'well' if health.well else 'not well'}: {health.reason}")
    return 0 if health.well else 1


if __name__ == "__main__":
    sys.exit(main())
