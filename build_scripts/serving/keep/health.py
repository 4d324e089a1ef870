"""Tell whether a server answers by sending it a text: Triton says that it is ready even when a model is dead.

    python -m build_scripts.serving.keep.health --url http://127.0.0.1:8000 --timeout 2
    python -m build_scripts.serving.keep.health --live

Triton's own readiness endpoints go on saying 200 after a model's process was killed. This module needs nothing but the
standard library, so that it can be the probe of a container: a readiness probe as it is, a liveness probe with --live.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time
import urllib.error
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from build_scripts.core.command_line import command, run
from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, check_name
from build_scripts.core.options import Address
from build_scripts.serving.keep.heartbeat import since_beat
from build_scripts.serving.keep.local_http import open_url
from build_scripts.serving.keep.run_state import RunState, read_state

PROBE_TEXT = "health"
# Exit codes. UNREADY: it lives, and is not to be sent requests now. (2 is that of a wrong command line.)
HEALTHY, UNHEALTHY, UNREADY = 0, 1, 3
# A supervisor gives a sign of life many times a second; while it stops a server, none for EXIT_TIMEOUT_S and a little.
BEAT_LIMIT_S = 30.0


@dataclass(frozen=True)
class Health:
    """overloaded: the server lives and refuses, because too many requests wait."""

    healthy: bool
    reason: str
    overloaded: bool = False


def probe(url: str, timeout_s: float, name: str = ENSEMBLE) -> Health:
    """One inference over HTTP, within the timeout."""
    text = f"{PROBE_TEXT} {time.monotonic_ns()}"  # one that no cache has an answer for
    body = {"inputs": [{"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]}
    try:
        with open_url(f"{url}/v2/models/{name}/infer", json.dumps(body).encode(), timeout_s=timeout_s) as response:
            outputs = {output["name"]: output for output in json.load(response)["outputs"]}
        return Health(True, f"class id {outputs['CLASS_ID']['data'][0]}")
    except urllib.error.HTTPError as error:
        return Health(False, f"HTTP {error.code}: {_message(error)}", overloaded=error.code == 503)
    except (OSError, http.client.HTTPException) as error:
        return Health(False, str(getattr(error, "reason", error)) or type(error).__name__)
    except (ValueError, KeyError, IndexError) as error:
        return Health(False, f"not an answer of {name}: {error!r}")


def wait_until_healthy(url: str, timeout_s: float, name: str = ENSEMBLE) -> Health:
    """Probe until an inference answers or the time is over; returns the last finding, or a refusal if there was one."""
    deadline, refusal = time.monotonic() + timeout_s, None
    while True:
        health = probe(url, max(0.1, deadline - time.monotonic()), name)
        refusal = health if health.overloaded else refusal
        if health.healthy or time.monotonic() >= deadline:
            return health if health.healthy else refusal or health
        time.sleep(0.05)


def report(url: str, timeout_s: float, *, live: bool, names: Sequence[str] = ()) -> tuple[int, str]:
    """The exit code and the line that a probe gives. The line names the classifiers that are not well.

    names: the classifiers to ask; if there are none, all that a supervised server has, else the default.
    live: HEALTHY, not UNREADY, for a server that lives. One whose supervisor is at work does, even while it loads or is
    started again: who kills them both then only makes it take longer.
    """
    state, silence_s = _supervised(url)
    if live and state and silence_s < BEAT_LIMIT_S:
        return HEALTHY, f"alive: its supervisor, process {state.pid}, is at work"
    if not live and state and state.draining:
        return UNREADY, "draining: it is about to stop, and still answers"
    names = names or list(state.releases if state else ()) or [ENSEMBLE]
    with ThreadPoolExecutor(len(names)) as pool:  # at once, so that one that hangs takes no time from the others
        found = dict(zip(names, pool.map(lambda name: wait_until_healthy(url, timeout_s, name), names)))
    unwell = {name: one for name, one in found.items() if not (one.healthy or one.overloaded)}
    overloaded = {name: one for name, one in found.items() if one.overloaded}
    if unwell:
        return UNHEALTHY, f"not healthy: {_reasons(unwell, names)}"
    if overloaded:
        return (HEALTHY if live else UNREADY), f"overloaded: {_reasons(overloaded, names)}"
    return HEALTHY, f"healthy: {_reasons(found, names)}"


def _reasons(found: dict[str, Health], asked: Sequence[str]) -> str:
    """The names are left out where the default is all there is."""
    if list(asked) == [ENSEMBLE]:
        return found[ENSEMBLE].reason
    return "; ".join(f"{name}: {one.reason}" for name, one in found.items())


def _supervised(url: str) -> tuple[RunState | None, float]:
    """The state of the server at a URL, if `make serve` runs it from this project; seconds since its sign of life."""
    there = urlsplit(url)
    host, port = there.hostname or "", there.port or 80
    try:
        state = read_state(port)
        same = socket.gethostbyname(host) == urlsplit(state.http_url).hostname
    except (ServingError, OSError, UnicodeError):
        return None, 0.0
    return (state if same else None), since_beat(port)


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read(500).decode("utf-8", "replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text


@command("python -m build_scripts health --http-port 9000")
def health(
    url: str = "",
    host: str = Address.host,
    http_port: int = Address.http_port,
    timeout: float = 2.0,
    live: bool = False,
    name: str = "",
) -> int:
    """Exit 0 only if a real inference answers; 3 if the server lives but is overloaded or draining. Asks every
    classifier, or the one that NAME names.
    """
    url = url or Address(host, http_port).http_url
    code, line = report(url, timeout, live=live, names=[check_name(name)] if name else [])
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(run(health, program="python -m build_scripts.serving.keep.health"))
