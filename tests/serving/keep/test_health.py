"""What the health command says, to people, to readiness probes and to liveness probes."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep import health, verdict
from build_scripts.serving.keep.health import HEALTHY, UNHEALTHY, UNREADY, report
from build_scripts.serving.keep.run_directory import held
from build_scripts.serving.keep.run_state import RunState, write_state
from build_scripts.serving.keep.verdict import VerdictFile
from tests.support.fake_frontend import Frontend
from tests.support.waiting import HANG_S

MODULE = "build_scripts.serving.keep.health"


def url_of(server: Frontend) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("word", "ready"),
    [
        (verdict.READY, HEALTHY),
        (verdict.OVERLOADED, UNREADY),
        (verdict.DRAINING, UNREADY),
        (verdict.STARTING, UNHEALTHY),
        (verdict.RESTARTING, UNHEALTHY),
        (verdict.SILENT, UNHEALTHY),
    ],
)
def test_supervised_server_is_judged_by_the_verdict_and_not_asked(frontend, word, ready):
    front = frontend(None)
    port = front.server_port
    with held(port):
        VerdictFile(port, "127.0.0.1").tell(word, "the reason")
        code, line = report(url_of(front), 0.3, live=False)
        assert code == ready
        assert "the reason" in line
        assert report(url_of(front), 0.3, live=True)[0] == HEALTHY
    assert front.asked == 0


def test_a_named_classifier_is_asked(frontend):
    front = frontend(200, topic=500)
    port = front.server_port
    with held(port):
        VerdictFile(port, "127.0.0.1").tell(verdict.READY)
        assert report(url_of(front), 1.0, live=False, names=["topic"])[0] == UNHEALTHY
        assert report(url_of(front), 1.0, live=False, names=["text_classifier"])[0] == HEALTHY


@pytest.mark.parametrize(
    ("status", "ready", "live", "said"),
    [
        (200, HEALTHY, HEALTHY, "healthy: class id 3"),
        (503, UNREADY, HEALTHY, "overloaded: HTTP 503: overload: 128 requests wait"),
        (500, UNHEALTHY, UNHEALTHY, "not healthy: HTTP 500: stub is not healthy"),
        (None, UNHEALTHY, UNHEALTHY, "not healthy: timed out"),
    ],
)
def test_unsupervised_server_is_asked(frontend, status, ready, live, said):
    url = url_of(frontend(status))
    assert report(url, 0.5, live=False) == (ready, said)
    assert report(url, 0.5, live=True) == (live, said)


def test_unsupervised_server_that_answers_others_is_busy_not_dead(frontend):
    front = frontend(None)
    front.busy = True
    code, line = report(url_of(front), 0.5, live=False)
    assert code == HEALTHY
    assert line.startswith("healthy: busy")


def test_server_that_is_gone_is_neither_ready_nor_alive():
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert [report(url, 0.3, live=live)[0] for live in (False, True)] == [UNHEALTHY, UNHEALTHY]


def test_a_refusal_counts_even_if_the_last_probe_timed_out(frontend):
    assert report(url_of(frontend(503, None)), 0.8, live=False)[0] == UNREADY


SERVED = {"text_classifier": "a", "sentiment": "b", "topic": "c"}
STATE = RunState(os.getpid(), "", "", "", "", "", SERVED, "")


@pytest.mark.parametrize(
    ("of_models", "code", "said"),
    [
        ({}, HEALTHY, "healthy: text_classifier: class id 3; sentiment: class id 3; topic: class id 3"),
        ({"topic": 500}, UNHEALTHY, "not healthy: topic: HTTP 500: stub is not healthy"),
        (
            {"text_classifier": None, "topic": 500},
            UNHEALTHY,
            "not healthy: text_classifier: timed out; topic: HTTP 500",
        ),
        ({"sentiment": 503}, UNREADY, "overloaded: sentiment: HTTP 503: overload"),
        ({"sentiment": 503, "topic": None}, UNHEALTHY, "not healthy: topic: timed out"),
    ],
)
def test_failing_classifier_is_named_without_a_verdict(frontend, of_models, code, said):
    """As on a full disk, where there is a state and no verdict."""
    front = frontend(200, **of_models)
    with held(front.server_port):
        write_state(front.server_port, replace(STATE, http_url=url_of(front)))
        found = report(url_of(front), 1.0, live=False)
    assert found[0] == code
    assert found[1].startswith(said)


def run_module(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    command = [sys.executable, "-S", "-E", "-m", MODULE, *arguments]
    return subprocess.run(
        command, cwd=PROJECT, env={**environment, **variables}, capture_output=True, text=True, timeout=HANG_S
    )


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_comes_between(frontend, name):
    proxy = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert run_module("--url", url_of(frontend(200)), **{name: proxy}).returncode == HEALTHY


def test_module_exits_with_the_code(frontend):
    url = url_of(frontend(503, topic=200))
    codes = [
        run_module("--url", url, "--timeout", "0.5", *more).returncode for more in ([], ["--live"], ["--name", "topic"])
    ]
    assert codes == [UNREADY, HEALTHY, HEALTHY]


def test_port_from_the_environment_counts(frontend):
    port = str(frontend(200).server_port)
    assert run_module(TRITON_TC_HTTP_PORT=port).returncode == HEALTHY


def test_wrong_option_is_a_usage_error():
    found = run_module("--lively")
    assert found.returncode == 2
    assert "--lively" in found.stderr


def test_default_address_is_that_of_the_options():
    from build_scripts.core.options import Address

    assert Address().http_url == health.DEFAULT_URL


def test_probe_of_a_supervised_server_imports_nothing_heavy(port, runs):
    """Every replica runs it every two seconds. Each of these modules costs as much as the whole probe."""
    code = f"""
import sys
from build_scripts.serving.keep import health, verdict
verdict.RUNS = {runs!r}
assert health.main(["--url", "http://127.0.0.1:{port}"]) == 0
print(*sorted(sys.modules))
"""
    with held(port):
        VerdictFile(port, "127.0.0.1").tell(verdict.READY, "inference answers")
        done = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, loaded = done.stdout.splitlines()
    assert said == "healthy: inference answers"
    heavy = {"argparse", "dataclasses", "json", "pathlib", "re", "socket", "typing", "urllib", "psutil", "threading"}
    assert not heavy & set(loaded.split())
