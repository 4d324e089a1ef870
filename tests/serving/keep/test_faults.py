"""Killed, hung and stopped processes: the service heals itself, tells the truth, and leaves nothing behind."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from build_scripts.releases.store import live_release
from build_scripts.serving.keep import inference
from build_scripts.serving.keep.health import HEALTHY, UNHEALTHY, report
from build_scripts.serving.keep.processes import MIB, private_bytes
from build_scripts.serving.start.start_message import READY
from tests.soak.attacks import Target, exchange, infer_bytes, request
from tests.soak.hostile import MAX_REQUEST_BYTES
from tests.support.servers import classifier_process, embedded, post, running, start
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server
GENERATE = "/v2/models/text_classifier/generate"
TEXT = "Midfielder scores twice"
# How soon a fault must be noticed and mended, however busy the machine is.
NOTICED_S, RECOVERED_S = 60.0, 120.0


@pytest.fixture(scope="module")
def tiny(tiny_repository, subject) -> Callable:
    """tiny(output): a server of the tiny model, in a `with` block."""
    options = ("--model", str(subject("bert").directory), "--precision", "fp32")
    return lambda output: running(tiny_repository, output, *options)


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    with tiny(tmp_path_factory.mktemp("faults") / "output.txt") as server:
        yield server


class Load:
    """Clients that never pause; wrong answers are collected."""

    def __init__(self, url: str):
        self.url = url
        self.expected = httpx.post(url + GENERATE, json={"TEXT": TEXT}, timeout=HANG_S).json()["CLASS_ID"]
        self.stop, self.answered, self.wrong = threading.Event(), 0, []
        self.threads = [threading.Thread(target=self.ask) for _ in range(3)]

    def ask(self) -> None:
        with httpx.Client(timeout=5) as client:
            while not self.stop.is_set():
                try:
                    response = client.post(self.url + GENERATE, json={"TEXT": TEXT})
                except httpx.HTTPError:
                    time.sleep(0.01)  # no server listens during a restart
                    continue
                if response.status_code == 200:
                    self.answered += 1
                    if response.json()["CLASS_ID"] != self.expected:
                        self.wrong.append(response.text)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)], ids=["killed", "stopped"]
)
@pytest.mark.parametrize(
    "victim", ["tokenizer/1", pytest.param("classifier/1", marks=classifier_process), "bin/tritonserver"]
)
def test_killed_or_stopped_process_is_replaced_under_load(server, victim, number):
    wait_for(lambda: inference.probe(server.http, 5.0).healthy, server.said)
    with Load(server.http) as load:
        wait_for(lambda: load.answered > 20, "no load")
        lines, before = server.said().count("restarting"), server.find("bin/tritonserver").pid
        server.find(victim).send_signal(number)
        wait_for(lambda: server.said().count("restarting") > lines, server.said, limit_s=NOTICED_S)
        answered = load.answered
        wait_for(lambda: load.answered > answered + 5, server.said, limit_s=RECOVERED_S)
    assert not load.wrong
    assert server.find("bin/tritonserver").pid != before


def test_health_fails_while_inference_fails(server):
    """Between the moment at which the supervisor notices and the one at which the new server answers."""
    wait_for(lambda: report(server.http, 5.0, live=False)[0] == HEALTHY, server.said)
    server.find("tokenizer/1").suspend()
    seen = []

    def fails(live: bool) -> bool:
        seen.append(report(server.http, 5.0, live=live)[0])
        return seen[-1] == UNHEALTHY

    wait_for(lambda: fails(live=False), server.said, limit_s=NOTICED_S)
    assert not fails(live=True)
    wait_for(lambda: report(server.http, 5.0, live=False)[0] == HEALTHY, server.said, limit_s=RECOVERED_S)


def test_server_lives_on_without_a_reader_of_its_output(tiny_repository, subject, tmp_path):
    """As in `make serve | head -1`: the next message must not end the supervisor."""
    options = ("--model", str(subject("bert").directory), "--precision", "fp32")
    server = start(tiny_repository, tmp_path / "output.txt", *options, output_to=subprocess.PIPE)
    try:
        assert any(b"ready:" in line for line in server.process.stdout)
        server.process.stdout.close()
        before = server.find("bin/tritonserver").pid
        server.find("bin/tritonserver").kill()
        wait_for(lambda: inference.probe(server.http, 5.0).healthy, "no answer after the fault", limit_s=RECOVERED_S)
        assert server.find("bin/tritonserver").pid != before
        assert server.stop() == 0
    finally:
        server.remove()


BURN = "while True: pass"


@pytest.mark.long
def test_working_server_is_left_alone_on_an_overloaded_machine(default_repository, tmp_path):
    """Eight busy processes on the machine, and clients whose requests each hold the most that is admitted."""
    body = {"TEXT": ["word " * 510] * 64}
    with running(default_repository, tmp_path / "output.txt", "--precision", "fp32") as server:
        burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(8)]
        try:
            with ThreadPoolExecutor(3) as pool:
                found = list(pool.map(lambda _: post(server.http + GENERATE, body, timeout_s=600)[0], range(3)))
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert found == [200, 200, 200]
        assert "restarting" not in server.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_answers_requests_in_flight_and_refuses_others(number, default_repository, tmp_path):
    with running(default_repository, tmp_path / "output.txt", "--precision", "fp32") as server:
        answers, late = [], []
        slow = {"TEXT": ["word " * 600] * 16}

        def ask():
            answers.append(post(server.http + GENERATE, slow)[0])

        def tokenized() -> int:
            (model,) = httpx.get(f"{server.http}/v2/models/tokenizer/stats").json()["model_stats"]
            return model["inference_count"]

        # Until then the supervisor's own requests count, too.
        wait_for(lambda: "ready:" in server.said(), server.said)
        before = tokenized()
        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: tokenized() >= before + len(slow["TEXT"]), "not sent")
        server.process.send_signal(number)
        wait_for(lambda: "stopping" in server.said(), server.said, limit_s=5)
        time.sleep(0.1)
        while server.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                late.append(post(server.http + GENERATE, {"TEXT": "a"}, timeout_s=5)[0])
        asking.join()
        assert answers == [200]
        assert 200 not in late
        assert server.process.wait(20) == 0
        assert server.is_gone()
        with pytest.raises(httpx.ConnectError):
            post(server.http + GENERATE, {"TEXT": "a"})


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's log is root's")
def test_no_process_crashes_when_the_server_stops(tiny, tmp_path):
    """Triton hides the exit codes of stubs; the kernel logs crashes."""
    kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with tiny(tmp_path / "output.txt") as server:
            if httpx.get(f"{server.http}/v2").json()["version"].startswith("2.71"):
                pytest.skip("Triton 2.71's python processes may crash after their last answer: production.md")
            assert post(server.http + GENERATE, {"TEXT": "a"})[0] == 200
            pids = [process.pid for process in server.family()]
            os.lseek(kernel_log, 0, os.SEEK_END)
        said = ""
        with contextlib.suppress(BlockingIOError):  # after the last record
            while True:
                said += os.read(kernel_log, 8192).decode("utf-8", "replace")
    finally:
        os.close(kernel_log)
    assert not [line for line in said.splitlines() if any(f"[{pid}]: segfault" in line for pid in pids)]


@pytest.mark.long
@pytest.mark.skipif(not embedded(), reason="glibc's threshold is set for the embedded server only")
def test_memory_of_large_requests_is_returned(tiny, tmp_path):
    """By default glibc would keep hundreds of MiB."""
    # One text of this size is refused at once.
    sent = request(infer_bytes([" " * MAX_REQUEST_BYTES]))
    with tiny(tmp_path / "output.txt") as server, ThreadPoolExecutor(100) as pool:
        triton = server.find("bin/tritonserver").pid
        before, target = private_bytes(triton), Target(server.address, "", 0, 0)
        assert set(pool.map(lambda _: exchange(target, sent, []), range(300))) == {"refused"}
        assert private_bytes(triton) - before < 64 * MIB


def test_killed_supervisor_leaves_no_server_behind(tiny, tmp_path):
    with tiny(tmp_path / "output.txt") as server:
        assert len(server.family()) == (3 if embedded() else 2)
        server.process.kill()
        wait_for(server.is_gone, lambda: f"{server.family()} {server.shared_memory()}", limit_s=15)


def test_destroyed_model_file_ends_with_a_clear_message(tiny_repository, subject, tmp_path):
    """The model file is destroyed while the server runs, and then the server is killed."""
    repository = tmp_path / "with blanks, and \u00fc \u4e2d" / "repository"  # which the first start has to survive
    shutil.copytree(tiny_repository, repository, symlinks=True)
    options = ("--model", str(subject("bert").directory), "--precision", "fp32")
    with running(repository, tmp_path / "output.txt", *options) as server:
        # A first start that fails ends at once; the supervisor must have seen this one succeed.
        wait_for(lambda: READY in server.said(), server.said)
        model = live_release(repository) / "model.pt"
        model.write_bytes(model.read_bytes()[:1000])
        server.find("bin/tritonserver").kill()
        assert server.process.wait(RECOVERED_S) == 1
    assert re.search(r"error: .*model\.pt is not the file that release \w+ was built with", server.said()), (
        server.said()
    )


def test_taken_port_is_one_clear_line(tiny_repository, subject, tmp_path):
    options = ("--model", str(subject("bert").directory), "--precision", "fp32")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start(tiny_repository, tmp_path / "output.txt", *options, "--http-port", str(port))
        try:
            assert server.process.wait(RECOVERED_S) == 1
        finally:
            server.remove()
    assert server.said().count("\n") == 1
    assert f"HTTP_PORT={port}" in server.said()
