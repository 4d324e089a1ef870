"""Keep a tritonserver answering: start it, watch it by real inferences, restart it when it fails, stop it cleanly.

Triton never restarts a python process that was killed, and goes on calling itself ready. So the whole server is
replaced, which is one mechanism for every kind of failure and always starts from one complete release.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.releases.models import serving_models
from build_scripts.serving.keep import health
from build_scripts.serving.keep.heartbeat import beat
from build_scripts.serving.keep.local_http import open_url
from build_scripts.serving.keep.processes import broken_process
from build_scripts.serving.keep.run_state import RunState, write_state
from build_scripts.serving.keep.server_log import last_error
from build_scripts.serving.keep.shutdown import stop as stop_server
from build_scripts.serving.keep.watch import PROBE_TIMEOUT_S, Watch, interruptible
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.ports import check_ports, listens
from build_scripts.serving.start.start_message import start_message
from build_scripts.serving.start.tritonserver import LOAD_LIMIT_S, TritonProcess, launch

# A server that answered for so long is a success, whatever ended it. Otherwise its end counts as one more failure in a
# row, and each waits longer than the one before, up to MAX_DELAY_S, so that a crash now and then costs seconds only.
STABLE_S, MAX_DELAY_S = 10.0, 2.0
# So many failures in a row, or so many starts that never answered, and it is not worth trying again.
MAX_FAILURES, MAX_FAILED_STARTS = 12, 4
# Triton gives the reason for a process that ended in its log, a moment later.
REASON_S = 1.0

# http_port, repository, name -> id of the release.
StartAnswerCache = Callable[[int, Path, dict[str, str]], None]


def serve(
    installation: Installation,
    repository: Path,
    address: Address,
    directory: Path,
    drain_s: float,
    start_answer_cache: StartAnswerCache | None,
) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises ServingError if the server cannot be kept alive.

    directory: the run directory, which the caller holds. drain_s: for how long health says no, and requests are still
    answered, before it stops. start_answer_cache: called once all models answer, if there is a response cache.
    """
    check_ports(address)
    os.umask(0o077)  # texts may be in the log, and the key is in the state
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    staging = directory / "staging"
    staging.mkdir(exist_ok=True)
    log = directory / "tritonserver.log"
    return Supervisor(installation, repository, staging, address, log, stop, drain_s, start_answer_cache).run()


class Supervisor:
    """Owns one tritonserver at a time. All waiting ends early when `stop` is set."""

    def __init__(
        self,
        installation: Installation,
        repository: Path,
        staging: Path,
        address: Address,
        log: Path,
        stop: threading.Event,
        drain_s: float = 0.0,
        start_answer_cache: StartAnswerCache | None = None,
    ):
        self.installation = installation
        self.repository = repository
        self.staging = staging
        self.address = address
        self.log = log
        self.stop = stop
        self.drain_s = drain_s
        self.start_answer_cache = start_answer_cache
        self.draining = False
        self.control_key = secrets.token_hex(16)
        self.failures = self.failed_starts = 0
        # What the server that runs was started with, name -> id of the release.
        self.releases: dict[str, str] = {}

    def state(self) -> RunState:
        return RunState(
            pid=psutil.Process().pid,
            http_url=self.address.http_url,
            grpc_url=self.address.grpc_url,
            repository=str(self.repository),
            staging=str(self.staging),
            log=str(self.log),
            releases=self.releases,
            control_key=self.control_key,
            draining=self.draining,
            embedded=self.installation.embedded,
            metrics_address=self.address.metrics_address,
            caches=self.start_answer_cache is not None,
        )

    def note_state(self) -> None:
        """Tell other commands about the server. It is kept running all the same when the disk is full."""
        try:
            write_state(self.address.http_port, self.state())
        except OSError as error:
            say(f"its state cannot be written, so that other commands do not see it as it is now: {error}")

    def run(self) -> int:
        """Start, watch, restart; returns 0 after a clean stop."""
        first = True
        while not self.stop.is_set():
            failed_at = time.monotonic()
            with self.started() as server:
                failure = self.wait_until_ready(server)
                ready_at = time.monotonic() if failure is None else None
                if failure is None and not self.stop.is_set():
                    if first:
                        threading.Thread(target=self.announce, daemon=True).start()
                    else:
                        say(f"answering again, {time.monotonic() - failed_at:.1f} s after the restart began")
                    failure = Watch(server, self.address, self.stop, [*self.releases]).run()
                    if failure is None:
                        self.drain(server)
                if failure is None or self.stop.is_set():
                    say("stopping: requests in flight are answered first")
                    stop_server(server)
                    say("stopped")
                    return 0
                if first and ready_at is None:
                    raise ServingError(failure)
                first = False
                delay = self.back_off(failure, ready_at)
            beat(self.address.http_port)
            self.stop.wait(delay)
        return 0  # stopped while no server ran

    def drain(self, server: TritonProcess) -> None:
        """Be seen to stop before stopping, so that whoever distributes requests sends no more; a failure ends it."""
        if self.drain_s:
            self.draining = True
            self.note_state()
            say(f"draining for {self.drain_s:g} s: health says so, requests are answered; stop again to end it at once")
            self.stop.clear()
            Watch(server, self.address, self.stop, [*self.releases]).run(self.drain_s)
            self.stop.set()

    @contextlib.contextmanager
    def started(self):
        """A launched server that is gone, with all its processes, when the block ends."""
        # Each server starts from a log of its own; the one before is kept for whoever looks into a failure.
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".previous.log"))
        repositories, self.releases = serving_models(self.repository, self.staging)
        self.note_state()
        server = launch(self.installation, repositories, self.address, self.control_key, self.log, [*self.releases])
        try:
            yield server
        finally:
            server.kill()

    def wait_until_ready(self, server: TritonProcess) -> str | None:
        """None once a real inference answered; else why that will not happen."""
        deadline = time.monotonic() + LOAD_LIMIT_S
        while not self.stop.wait(0.1):
            beat(self.address.http_port)
            server.hide_shared_memory()
            if server.poll() is not None:
                return f"could not start: tritonserver ended with code {server.poll()}: {last_error(self.log)}"
            if broken := broken_process(server):
                self.stop.wait(REASON_S)
                # Triton first runs a stub without arguments; that one, too, is dead until it is collected.
                if server.poll() is None and broken_process(server) == broken:
                    return f"could not start: {broken}: {last_error(self.log)}"
            if time.monotonic() > deadline:
                return f"could not start: no inference answered within {LOAD_LIMIT_S:.0f} s; see {self.log}"
            # Until it listens there, it is another server that answers, if any.
            if not listens(server.process.pid, self.address.http_port):
                continue
            if all(self.answers(name) for name in self.releases):
                if self.start_answer_cache:
                    self.start_to_cache(self.start_answer_cache)
                return None
        return None

    def answers(self, name: str) -> bool:
        found = interruptible(self.stop, health.probe, self.address.http_url, PROBE_TIMEOUT_S, name)
        return found is not None and found.healthy

    def start_to_cache(self, start_answer_cache: StartAnswerCache) -> None:
        """Switch the response cache on. If that fails the server answers as before, without a cache."""
        try:
            start_answer_cache(self.address.http_port, self.repository, self.releases)
        except (ServingError, OSError) as error:
            say(f"answers are not kept for texts that come again: {error}")

    def announce(self) -> None:
        """Warm up, then say that all is ready; in the background, because the server is to be watched meanwhile."""
        url = self.address.http_url
        for name in self.releases:
            warm_up(url, name)
        well = all(health.wait_until_healthy(url, LOAD_LIMIT_S, name).healthy for name in self.releases)
        if well and not (self.stop.is_set() or self.draining):
            print(start_message(self.installation, self.repository, self.address), flush=True)

    def back_off(self, failure: str, ready_at: float | None) -> float:
        """Seconds to wait, more after each failure in a row. Raises ServingError when there were too many.

        ready_at: when the failed server first answered, None if it never did.
        """
        stable = ready_at is not None and time.monotonic() - ready_at >= STABLE_S
        self.failures = 0 if stable else self.failures + 1
        self.failed_starts = self.failed_starts + 1 if ready_at is None else 0
        if self.failures >= MAX_FAILURES or self.failed_starts >= MAX_FAILED_STARTS:
            raise ServingError(
                f"gave up after {max(self.failures, self.failed_starts)} failures in a row; the last: {failure}. "
                f"The server's own words are in {self.log}"
            )
        delay = 0.0 if self.failures < 2 else min(0.25 * 2 ** (self.failures - 2), MAX_DELAY_S)
        say(f"{failure}; restarting" + (f" in {delay:g} s" if delay else ""))
        return delay


def warm_up(url: str, name: str) -> None:
    """Classify a text of every length, rounded as the classifier rounds: the first of each makes oneDNN compile, which
    takes as long again as the answer. After a restart this is left to the traffic, which waits already. Failures show
    in the watch.
    """
    for tokens in (*range(3, 9), *range(10, 17, 2), *range(20, 33, 4), *range(40, 257, 8), *range(272, 513, 16)):
        body = json.dumps({"TEXT": "word " * (tokens - 2)}).encode()
        with contextlib.suppress(OSError):
            open_url(f"{url}/v2/models/{name}/generate", body, timeout_s=30).close()


def say(message: str) -> None:
    """One line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
