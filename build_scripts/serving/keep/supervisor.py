"""Keep a tritonserver answering: start it, watch it, restart it when it fails, stop it cleanly.

Triton never restarts a python process that was killed, and goes on calling itself ready. So the whole server is
replaced: one mechanism for every kind of failure, which always starts from one complete release.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.releases.models import serving_models
from build_scripts.serving.keep import inference, verdict
from build_scripts.serving.keep.back_off import BackOff
from build_scripts.serving.keep.log_stream import following
from build_scripts.serving.keep.output import say
from build_scripts.serving.keep.run_state import RunState, read_state, write_state
from build_scripts.serving.keep.server_view import ServerView
from build_scripts.serving.keep.shutdown import stop as stop_server
from build_scripts.serving.keep.startup import Startup, warm_up
from build_scripts.serving.keep.verdict import VerdictFile
from build_scripts.serving.keep.watch import Watch
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.ports import check_ports
from build_scripts.serving.start.start_message import start_message
from build_scripts.serving.start.tritonserver import LOAD_LIMIT_S, TritonProcess, launch

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

    directory: the run directory, which the caller holds. drain_s: keep serving for this long after SIGTERM while
    readiness fails. start_answer_cache: called once all models answer, if there is a response cache.
    """
    check_ports(address)
    os.umask(0o077)  # the state holds the key
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
        self.back_off = BackOff()
        self.verdict = VerdictFile(address.http_port, address.client_host)
        # name -> id of the release, of the running server's start
        self.releases: dict[str, str] = {}

    def view_of(self, server: TritonProcess) -> ServerView:
        return ServerView(server, self.address, self.stop, embedded=self.installation.embedded)

    def tell(self, word: str, detail: str) -> None:
        """Tell the verdict to probes. While it drains, that is all they need to know."""
        if self.draining:
            word, detail = verdict.DRAINING, "it is about to stop, and still answers"
        self.verdict.tell(word, detail)

    def note_state(self) -> None:
        """Tell other commands about the server. A full disk does not end it."""
        state = RunState(
            pid=os.getpid(),
            http_url=self.address.http_url,
            grpc_url=self.address.grpc_url,
            repository=str(self.repository),
            staging=str(self.staging),
            log=str(self.log),
            releases=self.releases,
            control_key=self.control_key,
            embedded=self.installation.embedded,
            metrics_address=self.address.metrics_address,
            caches=self.start_answer_cache is not None,
        )
        try:
            write_state(self.address.http_port, state)
        except OSError as error:
            say(f"its state cannot be written, so other commands do not see the running server: {error}")

    def served(self) -> Sequence[str]:
        """The classifiers of the running server; a release may have added one."""
        with contextlib.suppress(ServingError):
            return list(read_state(self.address.http_port).releases) or list(self.releases)
        return list(self.releases)

    def run(self) -> int:
        """Start, watch, restart; returns 0 after a clean stop."""
        first = True
        while not self.stop.is_set():
            began = time.monotonic()
            with self.started() as server:
                view = self.view_of(server)
                failure = self.wait_until_ready(view)
                ready_at = view.now() if failure is None else None
                if failure is None and not self.stop.is_set():
                    if first:
                        threading.Thread(target=self.announce, daemon=True).start()
                    else:
                        say(f"answering again, {time.monotonic() - began:.1f} s after the restart began")
                    failure = Watch(view, self.stop, self.served, self.tell).run()
                    if failure is None:
                        self.drain(view)
                if failure is None or self.stop.is_set():
                    say("stopping: requests in flight are answered first")
                    stop_server(server)
                    say("stopped")
                    return 0
                if first and ready_at is None:
                    raise ServingError(failure)
                first = False
                delay_s = self.delay(failure, None if ready_at is None else view.now() - ready_at)
            self.stop.wait(delay_s)
        return 0  # stopped while no server ran

    def delay(self, failure: str, uptime_s: float | None) -> float:
        """Say what comes next; returns the seconds until then."""
        try:
            delay_s = self.back_off.delay(failure, uptime_s)
        except ServingError as error:
            raise ServingError(f"{error}. Triton's log is {self.log}") from error
        self.tell(verdict.RESTARTING, failure)
        say(f"{failure}; restarting" + (f" in {delay_s:g} s" if delay_s else ""))
        return delay_s

    def drain(self, view: ServerView) -> None:
        """Keep serving while readiness fails, so that balancers send no more; a failure ends the drain."""
        if self.drain_s:
            self.draining = True
            self.tell(verdict.DRAINING, "")
            say(f"draining for {self.drain_s:g} s: readiness fails, requests are answered; a second signal ends it")
            self.stop.clear()
            Watch(view, self.stop, self.served, self.tell).run(self.drain_s)
            self.stop.set()

    @contextlib.contextmanager
    def started(self) -> Iterator[TritonProcess]:
        """A launched server that is gone, with all its processes, when the block ends."""
        if self.log.exists():  # each server has a fresh log; the previous one is kept
            self.log.replace(self.log.with_suffix(".previous.log"))
        repositories, self.releases = serving_models(self.repository, self.staging)
        self.note_state()
        with following(self.log):
            server = launch(self.installation, repositories, self.address, self.control_key, self.log, [*self.releases])
            try:
                yield server
            finally:
                server.kill()

    def wait_until_ready(self, view: ServerView) -> str | None:
        """None once real inferences answered, or `stop` is set; else why that will not happen."""
        failure = Startup(view, self.stop, self.log, self.tell).wait(list(self.releases))
        if failure is None and self.start_answer_cache and not self.stop.is_set():
            self.start_to_cache(self.start_answer_cache)
        return failure

    def start_to_cache(self, start_answer_cache: StartAnswerCache) -> None:
        """Switch the response cache on. If that fails the server answers as before, without a cache."""
        try:
            start_answer_cache(self.address.http_port, self.repository, self.releases)
        except (ServingError, OSError) as error:
            say(f"the response cache stays off: {error}")

    def announce(self) -> None:
        """Warm up, then say that all is ready; runs in the background, beside the watch."""
        url = self.address.http_url
        for name in self.releases:
            warm_up(url, name)
        healthy = all(inference.wait_until_healthy(url, LOAD_LIMIT_S, name).healthy for name in self.releases)
        if healthy and not (self.stop.is_set() or self.draining):
            print(start_message(self.installation, self.repository, self.address), flush=True)
