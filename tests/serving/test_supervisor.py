"""What the supervisor takes for a failure, what it leaves alone, and what it does when it is asked to stop."""

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.serving import run_state, supervisor
from build_scripts.serving.supervisor import MAX_FAILURES, Supervisor
from build_scripts.serving.triton import Installation, TritonProcess
from build_scripts.settings import Address
from tests.support.fake_frontend import Frontend
from tests.support.servers import wait_for

# A hang is noticed in 1.4 s, or in 2.9 s where the statistics hang too; a busy machine may take longer.
GIVEN_UP_WITHIN_S, LEFT_ALONE_S = 6.0, 2.5
INSTALLATION = Installation(Path("tritonserver"), "a stand-in")


@pytest.fixture
def frontend() -> Iterator[Callable[..., Frontend]]:
    """frontend(*statuses), listening until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*statuses: int | None) -> Frontend:
            server = stack.enter_context(Frontend(*statuses))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(server.closing.set)
            return server

        yield start


@pytest.fixture
def process() -> Iterator[Callable[..., TritonProcess]]:
    """process(*command), in the place of tritonserver; gone when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> TritonProcess:
            started = subprocess.Popen(command, start_new_session=True)
            server = TritonProcess(started, f"text_classifier_stand_in_{started.pid}_")
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture
def idle(process) -> TritonProcess:
    return process("sleep", "60")


@pytest.fixture
def with_classifier(process, tmp_path) -> Iterator[Callable[[str], TritonProcess]]:
    """with_classifier(script): has a child whose command line is a classifier's, and which runs the shell script."""
    servers = []

    def start(script: str) -> TritonProcess:
        stub = tmp_path / "classifier" / "1" / "model.py"
        stub.parent.mkdir(parents=True)
        stub.write_text(script)
        # The limit ends it where this test was killed and cannot.
        servers.append(process("sh", "-c", f"ulimit -t 20; sh '{stub}' & wait"))
        return servers[-1]

    yield start
    for server in servers:
        # First, so that it does not become an orphan, which some containers take seconds to bury.
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        server.process.wait(GIVEN_UP_WITHIN_S)


@pytest.fixture
def computing(with_classifier) -> TritonProcess:
    return with_classifier("while :; do :; done\n")


@pytest.fixture
def supervisor_of(tmp_path) -> Callable[[int], Supervisor]:
    """supervisor_of(http_port)"""

    def make(http_port: int) -> Supervisor:
        address, log = Address(http_port=http_port), tmp_path / "tritonserver.log"
        return Supervisor(INSTALLATION, tmp_path, tmp_path, address, log, threading.Event())

    return make


@contextlib.contextmanager
def in_background(function: Callable, *arguments, stop: threading.Event) -> Iterator[Future]:
    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(function, *arguments)
        finally:
            stop.set()


def failure(watcher: Supervisor, server: TritonProcess) -> str | None:
    """What `watch` returns, which it has to do by itself."""
    with in_background(watcher.watch, server, stop=watcher.stop) as watching:
        return watching.result(GIVEN_UP_WITHIN_S)


def test_a_frontend_that_never_answers_hangs(supervisor_of, idle):
    with socket.create_server(("127.0.0.1", 0), backlog=16) as mute:
        found = failure(supervisor_of(mute.getsockname()[1]), idle)
    assert found.startswith("inference hangs: nothing was answered for ")


@pytest.mark.parametrize(("status", "why"), [(None, "timed out"), (503, "HTTP 503: overload")])
def test_inference_that_fails_while_nothing_computes_hangs(supervisor_of, frontend, idle, status, why):
    found = failure(supervisor_of(frontend(status).server_port), idle)
    assert found.startswith("inference hangs: nothing was answered for ")
    assert why in found


def test_what_a_classifier_has_computed_before_does_not_count(supervisor_of, frontend, with_classifier, tmp_path):
    done = tmp_path / "done"
    server = with_classifier(f"i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; touch '{done}'; sleep 60\n")
    wait_for(done.exists, GIVEN_UP_WITHIN_S, "still computing")
    found = failure(supervisor_of(frontend(None).server_port), server)
    assert found.startswith("inference hangs: nothing was answered for ")


def left_alone(watcher: Supervisor, server: TritonProcess, front: Frontend, enough: Callable[[], bool]) -> bool:
    """Whether the server is still watched once `enough` has happened."""
    with in_background(watcher.watch, server, stop=watcher.stop) as watching:
        wait_for(lambda: enough() or watching.done(), LEFT_ALONE_S + GIVEN_UP_WITHIN_S, "not watched")
        alone = not watching.done()
        watcher.stop.set()
        front.closing.set()
        return watching.result(GIVEN_UP_WITHIN_S) is None and alone


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since this was called."""
    began = time.monotonic()
    return lambda: time.monotonic() - began > seconds


@pytest.mark.parametrize("status", [None, 503], ids=["no answer", "overloaded"])
def test_a_classifier_that_computes_is_left_alone(supervisor_of, frontend, computing, status):
    front = frontend(status)
    assert left_alone(supervisor_of(front.server_port), computing, front, for_seconds(LEFT_ALONE_S))
    assert front.asked


def test_a_classifier_that_computes_for_ever_is_not(supervisor_of, frontend, computing, monkeypatch):
    monkeypatch.setattr(supervisor, "BUSY_LIMIT_S", LEFT_ALONE_S)
    found = failure(supervisor_of(frontend(None).server_port), computing)
    assert float(re.fullmatch(r"inference hangs: nothing was answered for (.*) s \(.*\)", found)[1]) > LEFT_ALONE_S


def test_a_server_that_answers_is_left_alone(supervisor_of, frontend, idle):
    """A refusal between two answers included, even if nothing computes at that moment."""
    front = frontend(200, 200, 200, 200, 503, 200)
    assert left_alone(supervisor_of(front.server_port), idle, front, lambda: front.asked >= 7)


def test_a_server_that_answers_others_but_not_the_supervisor_is_left_alone(supervisor_of, frontend, idle):
    front = frontend(None)
    front.busy = True
    assert left_alone(supervisor_of(front.server_port), idle, front, for_seconds(LEFT_ALONE_S))


def test_a_server_that_answers_others_is_not_asked(supervisor_of, frontend, idle):
    front = frontend(200)

    def count() -> bool:
        front.successes += 1
        return passed()

    passed = for_seconds(LEFT_ALONE_S)
    assert left_alone(supervisor_of(front.server_port), idle, front, count)
    assert front.asked == 0


@pytest.fixture
def killed(process) -> TritonProcess:
    """Has a child that was killed, and does not collect it."""
    server = process("sh", "-c", "sleep 60 & exec sleep 60")
    parent = psutil.Process(server.process.pid)
    wait_for(parent.children, GIVEN_UP_WITHIN_S, "no child")
    wait_for(lambda: parent.name() == "sleep", GIVEN_UP_WITHIN_S, "no exec")
    parent.children()[0].kill()
    return server


def test_a_killed_process_is_named_if_inference_fails(supervisor_of, frontend, killed):
    found = failure(supervisor_of(frontend(None).server_port), killed)
    assert re.fullmatch(r"process \d+ of the server was killed, and inference fails", found)


def test_a_killed_process_without_which_inference_goes_on_is_ignored(supervisor_of, frontend, killed):
    front = frontend(200)
    assert left_alone(supervisor_of(front.server_port), killed, front, lambda: front.asked >= 3)


def test_an_internal_error_is_a_failure_with_its_reason(supervisor_of, frontend, computing):
    found = failure(supervisor_of(frontend(500).server_port), computing)
    assert found == "inference fails: HTTP 500: stub is not healthy"


def test_a_server_that_ended_is_reported_with_its_exit_code(supervisor_of, process):
    server = process("sh", "-c", "exit 7")
    server.process.wait()
    assert failure(supervisor_of(free_ports(1)[0]), server) == "tritonserver ended with code 7"


@pytest.fixture
def launched(monkeypatch, process, tmp_path) -> list[TritonProcess]:
    """The servers that `run` started, each of which does nothing; announcing one needs more than that."""
    servers = []

    def launch(*_) -> TritonProcess:
        servers.append(process("sleep", "60"))
        return servers[-1]

    monkeypatch.setattr(supervisor, "launch", launch)
    monkeypatch.setattr(supervisor, "require_release", lambda _: {"release": "0123456789ab"})
    monkeypatch.setattr(run_state, "BUILD", tmp_path)
    monkeypatch.setattr(Supervisor, "announce", lambda _: None)
    return servers


def test_nothing_is_started_after_a_stop(supervisor_of, launched):
    stopped = supervisor_of(free_ports(1)[0])
    run_state.run_directory(stopped.address.http_port).mkdir(parents=True)
    stopped.stop.set()
    assert stopped.run() == 0
    assert launched == []


@pytest.fixture
def waiting(supervisor_of, frontend, launched, monkeypatch) -> Iterator[tuple[Supervisor, Future]]:
    """A supervisor that waits a minute before it starts a server again, and its `run`."""
    said = []
    monkeypatch.setattr(supervisor, "say", said.append)
    monkeypatch.setattr(supervisor, "MAX_DELAY_S", 60.0)
    running = supervisor_of(frontend(200, 500).server_port)
    running.failures = MAX_FAILURES - 2
    run_state.run_directory(running.address.http_port).mkdir(parents=True)
    with in_background(running.run, stop=running.stop) as ending:
        reason = "inference fails: HTTP 500: stub is not healthy"
        wait_for(lambda: f"{reason}; restarting in 60 s" in said, GIVEN_UP_WITHIN_S, said)
        yield running, ending
    assert len(launched) == 1


def test_a_failed_server_is_gone_before_the_wait_for_a_restart(waiting, launched):
    wait_for(lambda: launched[0].poll() is not None, GIVEN_UP_WITHIN_S, "the failed server still runs")
    assert not waiting[1].done()


def test_a_stop_ends_the_wait_for_a_restart(waiting):
    running, ending = waiting
    running.stop.set()
    assert ending.result(GIVEN_UP_WITHIN_S) == 0
