"""What the health command says, to people, to readiness probes and to liveness probes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep import health, heartbeat, run_directory
from build_scripts.serving.keep.health import HEALTHY, UNHEALTHY, UNREADY, report
from build_scripts.serving.keep.run_directory import held
from build_scripts.serving.keep.run_state import RunState, write_state

LONG_AGO_S = 3600


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    monkeypatch.setattr(run_directory, "BUILD", tmp_path)


@pytest.mark.parametrize(
    ("status", "ready", "live", "said"),
    [
        (200, HEALTHY, HEALTHY, "healthy: class id 3"),
        (503, UNREADY, HEALTHY, "overloaded: HTTP 503: overload: 128 requests wait"),
        (500, UNHEALTHY, UNHEALTHY, "not healthy: HTTP 500: stub is not healthy"),
        (None, UNHEALTHY, UNHEALTHY, "not healthy: timed out"),
    ],
)
def test_readiness_and_liveness_of_a_server_that_nobody_supervises(frontend, status, ready, live, said):
    url = f"http://127.0.0.1:{frontend(status).server_port}"
    assert report(url, 0.3, live=False) == (ready, said)
    assert report(url, 0.3, live=True) == (live, said)


def test_a_server_that_is_gone_is_neither_ready_nor_alive():
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert [report(url, 0.3, live=live)[0] for live in (False, True)] == [UNHEALTHY, UNHEALTHY]


def test_a_refusal_counts_even_if_the_last_probe_came_to_nothing(frontend):
    url = f"http://127.0.0.1:{frontend(503, None).server_port}"
    assert report(url, 0.5, live=False)[0] == UNREADY


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_lives_while_its_supervisor_is_at_work(frontend, host):
    """It may load, or be started again: a container that is killed for that starts from nothing."""
    port = frontend(None).server_port
    url = f"http://{host}:{port}"
    state = RunState(os.getpid(), f"http://127.0.0.1:{port}", "", "", "", "", {}, "")
    with held(port) as directory:
        write_state(port, state)
        assert report(url, 0.3, live=True)[0] == HEALTHY
        assert report(url, 0.3, live=False)[0] == UNHEALTHY
        # A supervisor that hangs gives no sign of life.
        os.utime(directory / run_directory.STATE_FILE, (time.time() - LONG_AGO_S,) * 2)
        assert report(url, 0.3, live=True)[0] == UNHEALTHY
        heartbeat.beat(port)
        assert report(url, 0.3, live=True)[0] == HEALTHY
    assert report(url, 0.3, live=True)[0] == UNHEALTHY


def test_a_server_that_drains_is_not_ready_and_lives(frontend):
    """Whatever it would answer: neither probe asks, for both are about what the supervisor does."""
    port = frontend(None).server_port
    url = f"http://127.0.0.1:{port}"
    with held(port):
        write_state(port, RunState(os.getpid(), url, "", "", "", "", {}, "", draining=True))
        assert report(url, 0.3, live=False) == (UNREADY, "draining: it is about to stop, and still answers")
        assert report(url, 0.3, live=True)[0] == HEALTHY


SERVED = {"text_classifier": "a", "sentiment": "b", "topic": "c"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_models", "code", "said"),
    [
        ({}, HEALTHY, "healthy: text_classifier: class id 3; sentiment: class id 3; topic: class id 3"),
        ({"topic": 500}, UNHEALTHY, "not healthy: topic: HTTP 500: stub is not healthy"),
        (
            {"text_classifier": None, "topic": 500},
            UNHEALTHY,
            "not healthy: text_classifier: timed out; topic: HTTP 500: stub",
        ),
        ({"sentiment": 503}, UNREADY, "overloaded: sentiment: HTTP 503: overload"),
        ({"sentiment": 503, "topic": None}, UNHEALTHY, "not healthy: topic: timed out"),
    ],
)
def test_the_classifier_that_is_ill_is_named(frontend, of_models, code, said):
    port = frontend(200, **of_models).server_port
    url = f"http://127.0.0.1:{port}"
    with held(port):
        write_state(port, RunState(os.getpid(), url, "", "", "", "", SERVED, ""))
        found = report(url, 0.5, live=False)
        assert found[0] == code
        assert found[1].startswith(said)
        for name in SERVED:
            own = {200: HEALTHY, 503: UNREADY}.get(of_models.get(name, 200), UNHEALTHY)
            assert report(url, 0.5, live=False, names=[name])[0] == own


def test_all_classifiers_are_asked_at_once(monkeypatch):
    """One that hangs takes the whole time of a probe, and leaves the others theirs."""
    together = threading.Barrier(len(SERVED))

    def well(*_) -> health.Health:
        together.wait(10)
        return health.Health(True, "class id 3")

    monkeypatch.setattr(health, "wait_until_healthy", well)
    assert report("http://127.0.0.1:9", 0.3, live=False, names=[*SERVED])[0] == HEALTHY


def test_of_a_server_that_nobody_supervises_the_names_are_given(frontend):
    url = f"http://127.0.0.1:{frontend(200, topic=500).server_port}"
    assert report(url, 0.3, live=False) == (HEALTHY, "healthy: class id 3")
    assert report(url, 0.3, live=False, names=["topic"])[0] == UNHEALTHY


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_comes_between(frontend, name):
    """In a process of its own: variables are looked at when the module is loaded."""
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment[name] = f"http://127.0.0.1:{free_ports(1)[0]}"
    command = [sys.executable, "-m", "build_scripts.serving.keep.health", "--url"]
    url = f"http://127.0.0.1:{frontend(200).server_port}"
    done = subprocess.run([*command, url], cwd=PROJECT, env=environment, capture_output=True, timeout=20)
    assert done.returncode == HEALTHY, done.stdout


def test_the_command_exits_with_the_code(frontend):
    url = f"http://127.0.0.1:{frontend(503, topic=200).server_port}"
    command = [sys.executable, "-S", "-m", "build_scripts.serving.keep.health", "--url", url, "--timeout", "0.3"]
    codes = [
        subprocess.run([*command, *more], cwd=PROJECT, capture_output=True, timeout=20).returncode
        for more in ([], ["--live"], ["--name", "topic"])
    ]
    assert codes == [UNREADY, HEALTHY, HEALTHY]
