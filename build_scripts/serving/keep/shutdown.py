"""Stop a server: what is in flight is answered first, and nothing else is waited for.

tritonserver itself waits for all connections that are open, used or not, and for gRPC requests that it has forgotten to
forget (2.51: some that were cancelled at the wrong moment), up to its exit timeout; then it ends with an error.
"""

from __future__ import annotations

import signal
import time

from build_scripts.serving.keep.processes import cpu_seconds
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S, TritonProcess

# A server that computed nothing for so long has nothing in flight that will be answered. (A client that takes longer
# than that to send a request, or to fetch an answer, is not waited for.)
QUIET_S = 2.0
# Of one core: less than that is no work. The kernel counts in hundredths of a second, and an idle server needs two a
# second.
QUIET_SHARE = 0.02


def stop(server: TritonProcess) -> None:
    """Ask it to answer what is in flight and to end; when it is quiet, or its exit timeout is over, end it."""
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + EXIT_TIMEOUT_S + 5
    before, since = cpu_seconds(server), time.monotonic()
    while server.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
        if time.monotonic() - since >= QUIET_S:
            after = cpu_seconds(server)
            worked = sum(seconds - before.get(who, 0.0) for who, seconds in after.items())
            if worked < QUIET_SHARE * QUIET_S:
                break
            before, since = after, time.monotonic()
    server.kill()
