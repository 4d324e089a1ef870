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
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from build_scripts.core.paths import PROJECT
from build_scripts.releases.store import live_release
from build_scripts.serving.keep import health
from build_scripts.serving.keep.processes import MIB, private_bytes
from build_scripts.serving.start.start_message import READY
from tests.soak.attacks import Target, exchange, infer_body, request
from tests.soak.hostile import MAX_REQUEST_BYTES
from tests.support.servers import embedded, post, running, start, wait_for

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not embedded(), reason="needs the classifier in a process of its own"),
]
FP32 = ("--precision", "fp32")
GENERATE = "/v2/models/text_classifier/generate"
RECOVERED_WITHIN_S, NOTICED_WITHIN_S = 10.0, 2.0


@pytest.fixture(scope="module")
def server(default_repository, tmp_path_factory):
    with running(default_repository, tmp_path_factory.mktemp("faults") / "output.txt", *FP32) as server:
        yield server


class Load:
    """Clients that never pause; wrong answers, and health reports that contradict the answers, are collected."""

    def __init__(self, url: str, expected: int):
        self.url, self.expected = url, expected
        self.stop, self.answered, self.wrong = threading.Event(), 0, []
        self.last_answer = time.monotonic()
        self.threads = [threading.Thread(target=target) for target in (self.ask, self.ask, self.ask, self.doubt)]

    def doubt(self) -> None:
        """Health must not go on saying well while nobody is answered."""
        well_since = None
        while not self.stop.is_set():
            if not health.probe(self.url, 1.0).healthy:
                well_since = None
                continue
            well_since = well_since or time.monotonic()
            if time.monotonic() - max(well_since, self.last_answer) > NOTICED_WITHIN_S:
                self.wrong.append(f"health says well, {time.monotonic() - self.last_answer:.1f} s after an answer")

    def ask(self) -> None:
        with httpx.Client(timeout=5) as client:
            while not self.stop.is_set():
                try:
                    response = client.post(self.url + GENERATE, json={"TEXT": "Midfielder scores twice"})
                except httpx.HTTPError:
                    time.sleep(0.01)  # nobody listens during a restart
                    continue
                if response.status_code == 200:
                    self.answered += 1
                    self.last_answer = time.monotonic()
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("victim", ["tokenizer/1", "classifier/1", "bin/tritonserver"])
def test_a_process_that_dies_or_hangs_under_load_is_replaced(server, victim, number, default_oracle):
    expected = default_oracle.class_ids(["Midfielder scores twice"])[0]
    with Load(server.http, expected) as load:
        wait_for(lambda: load.answered > 20, 10, "no load")
        lines, before = server.said().count("restarting"), server.find("bin/tritonserver").pid
        server.find(victim).send_signal(number)
        began = time.monotonic()
        noticed = wait_for(lambda: server.said().count("restarting") > lines, 5, f"not noticed: {server.said()}")
        assert noticed < NOTICED_WITHIN_S + 0.5, server.said()
        answered = load.answered
        wait_for(lambda: load.answered > answered + 5, RECOVERED_WITHIN_S, server.said())
        assert time.monotonic() - began < RECOVERED_WITHIN_S
    assert not load.wrong
    assert server.find("bin/tritonserver").pid != before
    assert health.wait_until_healthy(server.http, 2).healthy


def test_health_does_not_say_well_while_inference_fails(server):
    server.find("tokenizer/1").suspend()
    time.sleep(0.05)
    module = [sys.executable, "-m", "build_scripts.serving.keep.health", "--url", server.http, "--timeout", "0.6"]
    done = subprocess.run(module, cwd=PROJECT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stdout.startswith("not healthy")
    wait_for(lambda: health.probe(server.http, 1).healthy, RECOVERED_WITHIN_S, server.said())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest(number, default_repository, tmp_path):
    with running(default_repository, tmp_path / "output.txt", *FP32) as server:
        answers, late = [], []
        slow = {"TEXT": ["word " * 600] * 16}

        def ask():
            answers.append(post(server.http + GENERATE, slow)[0])

        def tokenized() -> int:
            (model,) = httpx.get(f"{server.http}/v2/models/tokenizer/stats").json()["model_stats"]
            return model["inference_count"]

        before = tokenized()
        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: tokenized() >= before + len(slow["TEXT"]), 10, "not sent")
        server.process.send_signal(number)
        wait_for(lambda: "stopping" in server.said(), 5, server.said())
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
def test_no_process_crashes_when_the_server_stops(default_repository, tmp_path):
    """The exit code is Triton's secret; a crash is in the kernel's log."""
    kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with running(default_repository, tmp_path / "output.txt", *FP32) as server:
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


@pytest.mark.slow
def test_memory_of_large_requests_is_returned(default_repository, tmp_path):
    """By default glibc would keep hundreds of MiB."""
    sent = request(infer_body([" " * MAX_REQUEST_BYTES]))  # one text of so many bytes is refused at once
    with running(default_repository, tmp_path / "output.txt") as server, ThreadPoolExecutor(100) as pool:
        triton = server.find("bin/tritonserver").pid
        before, target = private_bytes(triton), Target(server.address, "", 0, 0)
        assert set(pool.map(lambda _: exchange(target, sent, []), range(300))) == {"refused"}
        assert private_bytes(triton) - before < 64 * MIB


def test_a_killed_supervisor_leaves_no_server_behind(default_repository, tmp_path):
    with running(default_repository, tmp_path / "output.txt", *FP32) as server:
        assert len(server.family()) == 3
        server.process.kill()
        wait_for(server.is_gone, 15, f"{server.family()} {server.shared_memory()}")


def test_repeated_failure_ends_with_a_clear_message(default_repository, tmp_path):
    """The model file is destroyed behind the running server's back, and the server killed."""
    repository = tmp_path / "with blanks, and \u00fc \u4e2d" / "repository"  # which the first start has to survive
    shutil.copytree(default_repository, repository, symlinks=True)
    with running(repository, tmp_path / "output.txt", *FP32) as server:
        # A first start that fails ends at once; the supervisor has to have seen this one succeed.
        wait_for(lambda: READY in server.said(), 60, server.said())
        model = live_release(repository) / "model.pt"
        model.write_bytes(model.read_bytes()[:1000])
        server.find("bin/tritonserver").kill()
        assert server.process.wait(60) == 1
    assert re.search(r"gave up after \d+ failures in a row; the last: could not start", server.said()), server.said()


def test_a_taken_port_is_one_clear_line(default_repository, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start(default_repository, tmp_path / "output.txt", *FP32, "--http-port", str(port))
        try:
            assert server.process.wait(30) == 1
        finally:
            server.remove()
    assert server.said().count("\n") == 1
    assert f"HTTP_PORT={port}" in server.said()
