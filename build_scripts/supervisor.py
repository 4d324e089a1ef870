"""Keep a tritonserver answering: start it, watch it by real inferences, restart it when it fails, stop it cleanly.

Triton never restarts a python process that was killed, and goes on calling itself ready. So the whole server is
replaced, which is one mechanism for every kind of failure and always starts from one complete release.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import signal
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from build_scripts import health
from build_scripts.assemble import SWITCH_LOCK
from build_scripts.build import require_release
from build_scripts.machine import cpu_precisions, has_gpu
from build_scripts.server import Installation, TritonProcess, check_ports, launch
from build_scripts.settings import BUILD, CLASSIFIER, ENSEMBLE, Address, ServingError

# A killed process fails the next probe at once; a hung one costs PROBE_TIMEOUT_S. Both are noticed within 2 s.
PROBE_EVERY_S, PROBE_TIMEOUT_S = 0.4, 1.0
# A classifier that computes is left alone even if nothing was answered for this long: a full batch of long texts.
BUSY_LIMIT_S = 60.0
# Below this share of one core over a failed probe, the classifier's process does nothing.
IDLE_SHARE = 0.05
LOAD_LIMIT_S = 300.0
STATE_FILE = "state.json"
# A server that answered for so long is a success, whatever ended it. Otherwise its end counts as one more failure in a
# row, and each waits longer than the one before, up to MAX_DELAY_S, so that a crash now and then costs seconds only.
STABLE_S, MAX_DELAY_S = 10.0, 2.0
# So many failures in a row, or so many starts that never answered, and it is not worth trying again.
MAX_FAILURES, MAX_FAILED_STARTS = 12, 4


@dataclass(frozen=True)
class RunState:
    """What other commands need to know about a running server; kept in a file only its owner may read.

    release: what tritonserver read from the disk when it last started. log: of the running tritonserver.
    """

    pid: int
    http_url: str
    grpc_url: str
    repository: str
    staging: str
    log: str
    release: str
    control_key: str


def run_directory(http_port: int) -> Path:
    return BUILD / "serve" / str(http_port)


def read_state(http_port: int) -> RunState:
    """Raises ServingError if no supervised server runs on that port."""
    file = run_directory(http_port) / STATE_FILE
    with contextlib.suppress(OSError, ValueError, TypeError):
        state = RunState(**json.loads(file.read_text(encoding="utf-8")))
        if psutil.pid_exists(state.pid):
            return state
    raise ServingError(f"no server of `make serve` runs on HTTP_PORT={http_port}; start one, or name its port")


def serve(installation: Installation, repository: Path, address: Address) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code. Raises ServingError if the server cannot be kept alive."""
    check_ports(address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    directory = run_directory(address.http_port)
    staging = directory / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(installation, repository, staging, address, directory / "tritonserver.log", stop)
    try:
        return supervisor.run()
    finally:
        (directory / STATE_FILE).unlink(missing_ok=True)


def write_private(file: Path, state: RunState) -> None:
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(vars(state)), encoding="utf-8")
    new.replace(file)  # at once: others read it at any moment


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
    ):
        self.installation = installation
        self.repository = repository
        self.staging = staging
        self.address = address
        self.log = log
        self.stop = stop
        self.control_key = secrets.token_hex(16)
        self.failures = self.failed_starts = 0

    def state(self) -> RunState:
        return RunState(
            pid=psutil.Process().pid,
            http_url=self.address.http_url,
            grpc_url=self.address.grpc_url,
            repository=str(self.repository),
            staging=str(self.staging),
            log=str(self.log),
            release=require_release(self.repository)["release"],
            control_key=self.control_key,
        )

    def run(self) -> int:
        """Start, watch, restart; returns 0 after a clean stop."""
        first = True
        while True:
            failed_at = time.monotonic()
            with self.started() as server:
                failure = self.wait_until_ready(server)
                ready_at = time.monotonic() if failure is None else None
                if failure is None and not self.stop.is_set():
                    if first:
                        threading.Thread(target=self.announce, daemon=True).start()
                    else:
                        say(f"answering again, {time.monotonic() - failed_at:.1f} s after the restart began")
                    failure = self.watch(server)
                if self.stop.is_set():
                    say("stopping: requests in flight are answered first")
                    server.terminate()
                    say("stopped")
                    return 0
            if first and ready_at is None:
                raise ServingError(failure)
            first = False
            self.back_off(failure, ready_at)

    @contextlib.contextmanager
    def started(self):
        """A launched server that is gone, with all its processes, when the block ends.

        The switch lock is held from before the launch until it is ready, so that a server that reads its models never
        meets half of a release switch.
        """
        # Each server starts from a log of its own; the one before is kept for whoever looks into a failure.
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".previous.log"))
        repositories = [self.repository, self.staging]
        with (self.repository / SWITCH_LOCK).open("a") as self.reading:
            fcntl.flock(self.reading, fcntl.LOCK_SH)
            write_private(self.log.with_name(STATE_FILE), self.state())
            server = launch(self.installation, repositories, self.address, self.control_key, self.log)
            try:
                yield server
            finally:
                server.kill()

    def wait_until_ready(self, server: TritonProcess) -> str | None:
        """None once a real inference answered; else why that will not happen."""
        deadline = time.monotonic() + LOAD_LIMIT_S
        while not self.stop.is_set():
            if server.poll() is not None:
                return f"could not start: tritonserver ended with code {server.poll()}: {last_error(self.log)}"
            if time.monotonic() > deadline:
                return f"could not start: no inference answered within {LOAD_LIMIT_S:.0f} s; see {self.log}"
            if health.probe(self.address.http_url, 5.0).well:
                fcntl.flock(self.reading, fcntl.LOCK_UN)
                return None
            self.stop.wait(0.1)
        return None

    def announce(self) -> None:
        """Warm up, then say that all is ready; in the background, because the server is to be watched meanwhile."""
        warm_up(self.address.http_url)
        if health.wait_until_well(self.address.http_url, LOAD_LIMIT_S).well and not self.stop.is_set():
            print(start_message(self.installation, self.repository, self.address), flush=True)

    def watch(self, server: TritonProcess) -> str | None:
        """Returns why the server must be replaced, or None when it is asked to stop."""
        last_success, successes = time.monotonic(), success_count(self.address.http_url)
        while not self.stop.wait(PROBE_EVERY_S):
            if server.poll() is not None:
                return f"tritonserver ended with code {server.poll()}"
            broken = broken_process(server)
            if broken and not health.probe(self.address.http_url, 0.3).well:
                return f"{broken}, and inference fails"
            counted = success_count(self.address.http_url)
            # Others were answered meanwhile: no need to ask for ourselves. A release makes Triton count from 0 again.
            if counted not in (successes, -1):
                successes, last_success = counted, time.monotonic()
                continue
            worked = classifier_seconds(server)
            began = time.monotonic()
            found = health.probe(self.address.http_url, PROBE_TIMEOUT_S)
            if found.well:
                last_success = time.monotonic()
                continue
            if server.poll() is not None or success_count(self.address.http_url) not in (successes, -1):
                continue
            if found.reason.startswith("HTTP 5") and not found.overloaded:
                return f"inference fails: {found.reason}"
            period = max(time.monotonic() - began, 0.1)
            # A process that ended meanwhile, as at the end of a release, must not make the others look idle.
            seconds = [now - worked.get(pid, 0.0) for pid, now in classifier_seconds(server).items()]
            idle = sum(seconds) < IDLE_SHARE * period
            silence = time.monotonic() - last_success
            if (idle and silence > PROBE_TIMEOUT_S) or silence > BUSY_LIMIT_S:
                return f"inference hangs: nothing was answered for {silence:.1f} s ({found.reason})"
        return None

    def back_off(self, failure: str, ready_at: float | None) -> None:
        """Wait longer after each failure in a row. Raises ServingError when there were too many.

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
        self.stop.wait(delay)


def warm_up(url: str) -> None:
    """Classify texts of the lengths that matter: the first of each makes oneDNN compile kernels, which takes as long
    again as the answer. After a restart this is left to the traffic, which waits already. Failures show in the watch.
    """
    for text in ("word " * words for words in (*range(1, 33), 40, 48, 56, 64, 96, 128, 256, 510)):
        body = json.dumps({"TEXT": text}).encode()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/v2/models/{ENSEMBLE}/generate", body, timeout=30).close()


def broken_process(server: TritonProcess) -> str | None:
    """A process of the server that was killed or stopped, in words.

    Triton does not collect the dead ones, so they remain as zombies. For an instant, so does one that is unloaded,
    which is why inference is asked too.
    """
    states = {psutil.STATUS_ZOMBIE: "was killed", psutil.STATUS_STOPPED: "is stopped"}
    with contextlib.suppress(psutil.NoSuchProcess):
        tritonserver = psutil.Process(server.process.pid)
        for process in [tritonserver, *tritonserver.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if (state := process.status()) in states:
                    return f"process {process.pid} of the server {states[state]}"
    return None


def classifier_seconds(server: TritonProcess) -> dict[int, float]:
    """CPU seconds used so far by each process that runs a classifier: its stubs, or tritonserver itself."""
    seconds: dict[int, float] = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(server.process.pid)
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"/{CLASSIFIER}" in " ".join(child.cmdline()):
                    seconds[child.pid] = sum(child.cpu_times()[:2])
        if not seconds:
            seconds[process.pid] = sum(process.cpu_times()[:2])
    return seconds


def success_count(url: str) -> int:
    """How many ensemble requests were answered since the start; -1 if the server does not say."""
    try:
        with urllib.request.urlopen(f"{url}/v2/models/{ENSEMBLE}/stats", timeout=0.5) as response:
            models = json.load(response)["model_stats"]
        return sum(int(model["inference_stats"]["success"]["count"]) for model in models)
    except (OSError, ValueError, KeyError):
        return -1


def last_error(log: Path) -> str:
    """The most telling line of a server's log."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in reversed(lines):
            if line.startswith("error:") or (line.startswith("E") and "failed to load" in line):
                return f"{line} (all of it: {log})"
    return f"see {log}"


def start_message(installation: Installation, repository: Path, address: Address) -> str:
    """What a user wants to know once the server answers."""
    manifest = require_release(repository)
    lines = [
        "",
        f"ready: a real inference answered on {address.http_url}",
        f"  server     {installation.description}",
        f"  model      {manifest['checkpoint']} ({manifest['architecture']}, release {manifest['release']})",
        f"  precision  {manifest['precision']}",
        f"  labels     {', '.join(manifest['labels'])}",
        f"  HTTP       {address.http_url}/v2/models/{ENSEMBLE}",
        f"  gRPC       {address.grpc_url}",
        f"  metrics    http://{address.metrics_address}/metrics",
        f"  try        curl -s {address.http_url.removeprefix('http://')}/v2/models/{ENSEMBLE}/generate "
        """-d '{"TEXT": "Midfielder scores twice as champions win away"}'""",
        "",
    ]
    if manifest["precision"] not in cpu_precisions() and not has_gpu():
        lines.insert(-1, f"  warning    this CPU emulates {manifest['precision']}: slow; rebuild with PRECISION=auto")
    return "\n".join(lines)


def say(message: str) -> None:
    """One line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
