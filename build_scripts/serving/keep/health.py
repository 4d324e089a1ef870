"""Tell whether a server may be sent requests, or lives: the probe of a container, and what `make health` prints.

    python -S -E -m build_scripts.serving.keep.health
    python -S -E -m build_scripts.serving.keep.health --live

Of a supervised server it reads the supervisor's verdict, a file: such a probe costs the server nothing and answers at
once, however busy the server is. Any other server is asked for an inference (`inference.py`). Triton's own readiness
endpoints stay at 200 after a model's process was killed.
"""

from __future__ import annotations

import os
import sys

from build_scripts.serving.keep import verdict

# Exit codes. UNREADY: the server lives, but must not be sent requests now. (2 is that of a wrong command line.)
HEALTHY, UNHEALTHY, UNREADY = 0, 1, 3
# That of `core.options`, which takes longer to import than everything else here.
DEFAULT_URL = "http://127.0.0.1:8000"
OWN_VARIABLES = {f"TRITON_TC_{name}" for name in ("URL", "HOST", "HTTP_PORT", "TIMEOUT", "LIVE", "NAME")}


def report(url: str, timeout_s: float, *, live: bool, names: list[str] | tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code of a probe, and a line that says why.

    names: classifiers to ask for an inference; if there are none, the supervisor's verdict counts.
    live: HEALTHY while a supervisor is at work, whatever its server does: it replaces a failed server faster than a
    restart of both would.
    """
    told = None if names else told_by_supervisor(url, live)
    if told is None:
        from build_scripts.serving.keep.inference import report_of_inferences

        return report_of_inferences(url, timeout_s, live=live, names=names)
    return told


def told_by_supervisor(url: str, live: bool) -> tuple[int, str] | None:
    """As `report`; None if no supervisor of this project serves there."""
    host, _, port = url.partition("://")[2].partition("/")[0].rpartition(":")
    found = verdict.read(host, port)
    if found is None:
        return None
    word, detail = found
    line = f"{word}: {detail}" if detail else word
    if live:
        return HEALTHY, f"alive: its supervisor is at work ({line})"
    if word == verdict.READY:
        return HEALTHY, f"healthy: {detail}"
    if word in (verdict.OVERLOADED, verdict.DRAINING):
        return UNREADY, line
    return UNHEALTHY, f"not healthy: {line}"


def quick(arguments: list[str]) -> tuple[int, str] | None:
    """The report for the options of a container's probe; None if anything else is asked, or no supervisor answers."""
    url, live, left = DEFAULT_URL, False, list(arguments)
    while left:
        option = left.pop(0)
        if option == "--live":
            live = True
        elif option == "--url" and left:
            url = left.pop(0)
        else:
            return None
    return None if OWN_VARIABLES & os.environ.keys() else told_by_supervisor(url, live)


def main(arguments: list[str]) -> int:
    found = quick(arguments)
    if found is None:
        from build_scripts.core.command_line import run
        from build_scripts.serving.keep.health_command import health

        return run(health, arguments, program="python -m build_scripts.serving.keep.health")
    code, line = found
    print(line)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
