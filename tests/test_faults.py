"""Killed, hung and stopped processes: the service heals itself, tells the truth, and leaves nothing behind."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest

from build_scripts import health
from build_scripts.settings import PROJECT
from tests.servers import embedded, post, running, shared_memory, start

pytestmark = pytest.mark.skipif(not embedded(), reason="needs the classifier in a process of its own")
FP32 = ("--precision", "fp32")
GENERATE = "/v2/models/text_classifier/generate"
RECOVERED_WITHIN_S, NOTICED_WITHIN_S = 10.0, 2.0


@pytest.fixture(scope="module")
def server(default_repository, tmp_path_factory):
    with running(default_repository, tmp_path_factory.mktemp("faults") / "output.txt", *FP32) as server:
        yield server


def wait_for(condition, limit_s: float, what: str) -> float:
    """Seconds until the condition held; fails after the limit."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, what
        time.sleep(0.02)
    return time.monotonic() - began


class Load:
    """Clients that never pause; wrong answers and health reports that contradict them are collected."""

    def __init__(self, url: str, expected: int):
        self.url, self.expected = url, expected
        self.stop, self.answered, self.wrong = threading.Event(), 0, []
        self.threads = [threading.Thread(target=self.ask) for _ in range(3)]

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
    assert health.wait_until_well(server.http, 2).well


def test_health_does_not_say_well_while_inference_fails(server):
    """Triton's own readiness does, for a killed process."""
    server.find("tokenizer/1").suspend()
    time.sleep(0.05)
    module = [sys.executable, "-m", "build_scripts.health", "--url", server.http, "--timeout", "0.6"]
    done = subprocess.run(module, cwd=PROJECT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert done.stdout.startswith("not well")
    wait_for(lambda: health.probe(server.http, 1).well, RECOVERED_WITHIN_S, server.said())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest(number, default_repository, tmp_path):
    with running(default_repository, tmp_path / "output.txt", *FP32) as server:
        family, answers = server.family(), []
        slow = {"TEXT": ["word " * 600] * 24}

        def ask():
            answers.append(post(server.http + GENERATE, slow)[0])

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.4)
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        asking.join()
        assert answers == [200]
        assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        assert not shared_memory(server)
        with pytest.raises(httpx.ConnectError):
            post(server.http + GENERATE, {"TEXT": "a"})


def test_a_killed_supervisor_leaves_no_server_behind(default_repository, tmp_path):
    with running(default_repository, tmp_path / "output.txt", *FP32) as server:
        family = server.family()
        server.process.kill()
        _, alive = psutil.wait_procs(family, timeout=15)
        assert not alive
        assert not shared_memory(server)


def test_repeated_failure_ends_with_a_clear_message(default_repository, tmp_path):
    """The model file is destroyed behind the running server's back, and the server killed."""
    repository = tmp_path / "repository"
    shutil.copytree(default_repository, repository, symlinks=True)
    with running(repository, tmp_path / "output.txt", *FP32) as server:
        model = (repository / "classifier" / "1" / "model.pt").resolve()
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
        assert server.process.wait(30) == 1
    assert server.said().count("\n") == 1
    assert f"HTTP_PORT={port}" in server.said()
