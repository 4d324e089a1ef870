"""Alerts and dashboard: a real Prometheus scrapes the real server and HAProxy."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
from importlib.metadata import version
from typing import NamedTuple

import httpx
import pytest

from build_scripts.benchmarks.subprocesses import free_ports, listens
from build_scripts.core.paths import PROJECT
from build_scripts.serving.keep.inference import wait_until_healthy
from build_scripts.serving.start.installation import EMBEDDED_VERSION
from tests.deploy.conftest import RULES
from tests.support.balancers import CONFIGURATIONS, certificate
from tests.support.containers import run
from tests.support.deploy_tools import PATH, need
from tests.support.prometheus import RECORD, Watch, hurried, scraping
from tests.support.servers import post, running
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server
DASHBOARD = PROJECT / "deploy" / "monitoring" / "dashboard.json"
SCALER = PROJECT / "deploy" / "kubernetes" / "components" / "keda" / "scaled-object.yaml"
# Labels that a cluster's Prometheus gives to a target.
TARGET = {"namespace": "text-classifier", "pod": "a"}
GENERATE = "/v2/models/text_classifier/generate"
# Headlines of two classes, and a text that says nothing.
SPORT, MONEY = "Midfielder scores twice as champions win away", "Bank raises interest rates as inflation slows"
UNSURE = "a"


class Edge(NamedTuple):
    """HAProxy in front of the server: ports of clients and of metrics."""

    https: int
    metrics: int
    process: subprocess.Popen


@pytest.fixture(scope="module")
def served(packed, tmp_path_factory):
    output = tmp_path_factory.mktemp("monitored") / "output.txt"
    with running(packed.directory / "model_repository", output) as server:
        yield server


@pytest.fixture(scope="module")
def edge(served, tmp_path_factory):
    """HAProxy as shipped, on free ports, in front of the server."""
    need("haproxy", "openssl")
    directory = tmp_path_factory.mktemp("edge")
    certificate(directory)
    https, metrics = free_ports(2)
    address = served.address
    text = (CONFIGURATIONS / "haproxy.cfg").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^ *server replica[23] .*\n", "", text)
    text = text.replace("192.0.2.11:8000", f"127.0.0.1:{address.http_port}").replace(
        "port 8000 check", f"port {address.http_port} check"
    )
    text = text.replace("192.0.2.11:8001", f"127.0.0.1:{address.grpc_port}").replace(":8443", f"127.0.0.1:{https}")
    (directory / "haproxy.cfg").write_text(text.replace(":8405", f"127.0.0.1:{metrics}"), encoding="utf-8")
    environment = {"CERTIFICATE": "service.pem", "ADMIN_SOCKET": str(directory / "admin.sock"), "PATH": PATH}
    with (directory / "output.txt").open("wb") as output:
        command = ["haproxy", "-db", "-f", "haproxy.cfg"]
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output)
    try:
        wait_for(lambda: process.poll() is not None or listens(https), "HAProxy does not listen")
        assert process.poll() is None, (directory / "output.txt").read_text(encoding="utf-8")
        yield Edge(https, metrics, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def prometheus(served, edge, rules, tmp_path_factory):
    """A real Prometheus that has scraped server and proxy under a little load."""
    need("prometheus")
    targets = {"text-classifier": served.address.metrics_address, "text-classifier-proxy": f"127.0.0.1:{edge.metrics}"}
    files = [*(rules / name for name in RULES), *hurried([rules / name for name in RULES])]

    with scraping(tmp_path_factory.mktemp("prometheus"), files, targets, TARGET) as query:

        def scraped_under_load() -> bool:
            post(f"{served.http}{GENERATE}", {"TEXT": [SPORT, f"{SPORT} " * 80]})
            post(f"{served.http}{GENERATE}", b'{"TEXT": "\\udcff"}')
            ask_through(edge)
            scrapes = [float(one["value"][1]) for one in query("count_over_time(up[1m])")]
            return len(scrapes) == len(targets) and min(scrapes) >= 5

        wait_for(scraped_under_load, "nothing is scraped")
        wait_for(lambda: query('ALERTS{alertstate="firing"}') == [], "an alert fires")
        yield Watch(query, time.time())


def ask_through(edge: Edge) -> str:
    """The status of a request through the proxy."""
    url = f"https://127.0.0.1:{edge.https}{GENERATE}"
    return run(
        "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-d", '{"TEXT": "goal"}', url, check=False
    ).stdout


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("expression", dashboard_queries())
def test_every_query_of_the_dashboard_has_an_answer(prometheus, expression):
    found = prometheus(expression.replace("$namespace", "text-classifier").replace("$job", "text-classifier"))
    assert found
    assert all(series["value"][1] != "NaN" for series in found), found


def test_every_metric_that_a_rule_names_exists(prometheus, rules):
    text = "".join((rules / name).read_text(encoding="utf-8") for name in RULES)
    names = set(re.findall(r"\b(?:nv_inference|haproxy|text_classifier)_\w+", text))
    assert len(names) >= 9
    assert [name for name in sorted(names) if not prometheus(name)] == []


def test_a_replica_tells_what_runs(prometheus, packed):
    (found,) = prometheus("text_classifier_info == 1")
    expected = {
        "release": packed.releases["text_classifier"],
        "precision": "fp32",
        "torch": version("torch"),
        "triton": EMBEDDED_VERSION,
    }
    assert {name: found["metric"][name] for name in expected} == expected


def test_a_healthy_server_fires_no_alert(prometheus):
    assert prometheus('ALERTS{alertstate="firing", alertname!~".*Soon"}') == []


def flood(served, stopped: threading.Event) -> list[threading.Thread]:
    """Clients that together keep more requests waiting than a replica admits."""
    return clients_of(served, {"TEXT": [f"{SPORT} " * 40] * 8}, 160, stopped)


def clients_of(
    served, body: dict, number: int, stopped: threading.Event, pause_s: float = 0.0
) -> list[threading.Thread]:
    def ask() -> None:
        while not stopped.wait(pause_s):
            with contextlib.suppress(httpx.HTTPError):  # no server listens during a restart
                post(f"{served.http}{GENERATE}", body)

    clients = [threading.Thread(target=ask, daemon=True) for _ in range(number)]
    for client in clients:
        client.start()
    return clients


def test_an_overload_fires_its_alerts_and_moves_the_autoscalers_metric(prometheus, served):
    """The record is the sum of both gauges, at each time that it was taken."""
    stopped = threading.Event()
    clients = flood(served, stopped)
    try:
        wait_for(lambda: prometheus.fired() >= {"Refuses", "Waits", "Slow", "LatencyBudget"}, "no alert")
    finally:
        stopped.set()
        for client in clients:
            client.join(HANG_S)
    query = re.search(r"query: (.+)", SCALER.read_text(encoding="utf-8"))[1]
    gauges = {"pending": "nv_inference_pending_request_count", "held": "text_classifier_held_requests"}
    seen = {}
    for name, gauge in gauges.items():
        (found,) = prometheus(gauge + '{model="classifier"}[5m]')
        seen[name] = {at: float(value) for at, value in found["values"]}
    # A scrape brings both at the same time. A rule takes the last that has arrived.
    sums = {at: value + seen["held"].get(at, 0.0) for at, value in seen["pending"].items()}
    assert max(seen["held"].values()) > 0
    recorded = [(at, float(value)) for at, value in prometheus(f"{RECORD}[2m]")[0]["values"]]
    for at, value in recorded:
        assert value in [number for taken, number in sums.items() if at - 30 < taken <= at], (at, value)
    assert any(value not in seen["pending"].values() for _, value in recorded)
    assert float(prometheus(query, recorded[-1][0])[0]["value"][1]) == recorded[-1][1]


def test_other_texts_than_before_fire_their_alerts(prometheus, served):
    def fires(alert: str, text: str, since: float) -> bool:
        assert post(f"{served.http}{GENERATE}", {"TEXT": [text] * 16})[0] == 200
        return alert in prometheus.fired(since)

    assert "Unsure" not in prometheus.fired()
    wait_for(lambda: fires("Unsure", UNSURE, prometheus.since), "no alert")

    def steady() -> bool:
        """One class before and now: earlier tests sent others. The proxy's checks do not count."""
        fires("Drift", SPORT, prometheus.since)
        before = [float(one["value"][1]) for one in prometheus("soon:answers:before > 0")]
        return len(before) == 1 and before[0] > 50 and not prometheus('ALERTS{alertname="TextClassifierDriftSoon"}')

    wait_for(steady, "nothing is recorded")
    began = time.time()
    wait_for(lambda: fires("Drift", MONEY, began), "no alert")


def test_killed_servers_fire_their_alerts(prometheus, served):
    """Requests fail between a kill and the restart."""
    stopped = threading.Event()
    # 80 requests a second at most, so that the first scrape after a restart counts fewer than the last before it.
    clients = clients_of(served, {"TEXT": SPORT}, 4, stopped, pause_s=0.05)
    count = 'nv_inference_count{model="text_classifier"}'
    began = time.time()
    try:
        for _ in range(3):
            wait_for(lambda: sum(float(one["value"][1]) for one in prometheus(count)) > 300, "nothing is counted")
            served.find("/classifier/1").send_signal(signal.SIGKILL)
            restarts = served.said().count("restarting")
            wait_for(lambda before=restarts: served.said().count("restarting") > before, "not noticed")
            wait_for(lambda: wait_until_healthy(served.http, 1.0).healthy, "no answer")
        wait_for(lambda: prometheus.fired(began) >= {"Fails", "Restarts"}, "no alert")
    finally:
        stopped.set()
        for client in clients:
            client.join(HANG_S)


def test_a_stopped_server_and_a_stopped_proxy_fire_their_alerts(prometheus, served, edge, rules):
    """Last: nothing serves after it, and every alert has fired."""
    assert served.stop() == 0

    def all_fire() -> bool:
        assert ask_through(edge) in ("503", "000")
        return prometheus.fired() >= {"Down", "NoReplica", "EdgeErrors", "ErrorBudgetFast", "ErrorBudgetSlow"}

    wait_for(all_fire, "no alert")
    assert "ProxyDown" not in prometheus.fired()
    edge.process.kill()
    wait_for(lambda: "ProxyDown" in prometheus.fired(), "no alert")

    text = "".join((rules / name).read_text(encoding="utf-8") for name in RULES)
    assert prometheus.fired() == set(re.findall(r"alert: TextClassifier(\w+)", text))
