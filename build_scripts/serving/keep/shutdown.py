"""Stop a server: requests in flight are answered first, and nothing else is waited for.

tritonserver itself waits for all open connections, used or not, and in 2.51 for cancelled gRPC requests that it never
releases, up to its exit timeout; then it ends with an error.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from build_scripts.serving.keep.processes import Processes, processes_of
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S, TritonProcess

# A server that computed nothing in this period has nothing in flight that will be answered.
QUIET_S = 2.0
# Of one core. An idle server needs less: the kernel counts in hundredths of a second.
QUIET_SHARE = 0.02
LOOK_EVERY_S = 0.05


def stop(
    server: TritonProcess,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    look: Callable[[int], Processes] = processes_of,
) -> None:
    """Ask it to answer what is in flight and to end; end it once it is quiet or its exit timeout is over.

    A process that waits for the CPU is not quiet.
    """
    server.process.send_signal(signal.SIGTERM)
    deadline = now() + EXIT_TIMEOUT_S + 5
    before, since, runnable = look(server.process.pid), now(), False
    while server.poll() is None and now() < deadline:
        wait(LOOK_EVERY_S)
        after = look(server.process.pid)
        if now() - since < QUIET_S:
            continue
        used_s = sum(one.cpu_s - (before[pid].cpu_s if pid in before else 0.0) for pid, one in after.items())
        runnable = any(one.is_runnable for one in after.values())
        if used_s < QUIET_SHARE * QUIET_S and not runnable:
            break
        before, since = after, now()
    server.kill()
