"""Alerts, dashboard and traces, against a real Prometheus that scrapes the real server, and an OTLP receiver."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.paths import PROJECT
from tests.support.containers import run
from tests.support.deploy_tools import need, tool
from tests.support.http_stand_in import Reply, Request, StandIn
from tests.support.servers import post, running, wait_for

pytestmark = pytest.mark.server
DASHBOARD = PROJECT / "deploy" / "monitoring" / "dashboard.json"
RULE = PROJECT / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
SCALER = PROJECT / "deploy" / "kubernetes" / "components" / "keda" / "scaled-object.yaml"
GENERATE = "/v2/models/text_classifier/generate"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(scope="module")
def rules(tmp_path_factory) -> Path:
    """A directory with the rules as Prometheus reads them, and their tests."""
    directory = tmp_path_factory.mktemp("rules")
    code = "import sys, yaml; print(yaml.safe_dump(yaml.safe_load(sys.stdin)['spec']))"
    text = run(tool("kubernetes", "python"), "-c", code, input=RULE.read_text(encoding="utf-8")).stdout
    (directory / "rules.yaml").write_text(text, encoding="utf-8")
    shutil.copy(Path(__file__).parent / "rules_test.yaml", directory)
    return directory


def test_the_rules_are_valid_and_every_alert_fires_when_it_should(rules):
    need("prometheus")
    run("promtool", "check", "rules", "--lint-fatal", rules / "rules.yaml")
    run("promtool", "test", "rules", rules / "rules_test.yaml")


def test_every_alert_has_a_test_that_makes_it_fire(rules):
    alerts = set(re.findall(r"alert: (\w+)", (rules / "rules.yaml").read_text(encoding="utf-8")))
    tests = (rules / "rules_test.yaml").read_text(encoding="utf-8")
    assert len(alerts) >= 6
    assert set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests)) == alerts


class Receiver(StandIn):
    """An OTLP/HTTP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict]] = []
        super().__init__(self.keep)

    def keep(self, request: Request) -> Reply:
        self.kept.append((request.path, json.loads(request.body)))
        return Reply()


@pytest.fixture(scope="module")
def receiver():
    with Receiver() as server:
        yield server


@pytest.fixture(scope="module")
def served(packed, receiver, tmp_path_factory):
    output = tmp_path_factory.mktemp("monitored") / "output.txt"
    trace = receiver.url
    with running(packed.directory / "model_repository", output, "--trace", trace) as server:
        yield server


def test_a_callers_trace_goes_on_through_every_step(served, receiver):
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    assert post(f"{served.http}{GENERATE}", {"TEXT": "traced"}, headers)[0] == 200

    def spans() -> list[dict]:
        resources = [resource for _, body in receiver.kept for resource in body["resourceSpans"]]
        found = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
        return [span for span in found if span["traceId"] == TRACE_ID]

    wait_for(lambda: len(spans()) >= 4, 30, "no spans came")
    assert {path for path, _ in receiver.kept} == {"/v1/traces"}
    assert {"InferRequest", "text_classifier", "tokenizer", "classifier"} <= {span["name"] for span in spans()}
    (top,) = (span for span in spans() if span["name"] == "InferRequest")
    assert top["parentSpanId"] == "b7ad6b7169203331"


@pytest.fixture(scope="module")
def prometheus(served, rules, tmp_path_factory):
    """query(expression): what a real Prometheus answers, which has scraped the server while it was asked things."""
    need("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules / "rules.yaml")],
        "scrape_configs": [
            {"job_name": "text-classifier", "static_configs": [{"targets": [served.address.metrics_address]}]}
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")
    (port,) = free_ports(1)
    with (directory / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=output,
            stderr=output,
        )

    def query(expression: str) -> list[dict]:
        url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]["result"]

    def scraped_under_load() -> bool:
        post(f"{served.http}{GENERATE}", {"TEXT": ["short", "word " * 600]})
        post(f"{served.http}{GENERATE}", b'{"TEXT": "\\udcff"}')
        try:
            return float(query('count_over_time(up{job="text-classifier"}[1m])')[0]["value"][1]) >= 5
        except (OSError, IndexError):
            return False

    try:
        wait_for(scraped_under_load, 60, (directory / "output.txt").read_text(encoding="utf-8"))
        yield query
    finally:
        process.terminate()
        process.wait(20)


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("expression", dashboard_queries())
def test_every_query_of_the_dashboard_has_an_answer(prometheus, expression):
    found = prometheus(expression)
    assert found
    assert all(series["value"][1] != "NaN" for series in found), found


def test_the_autoscalers_query_and_record_are_numbers_and_agree(prometheus):
    query = re.search(r"query: (.+)", SCALER.read_text(encoding="utf-8"))[1]
    (scaler,) = prometheus(query)
    (record,) = prometheus("text_classifier_waiting_requests")
    assert float(scaler["value"][1]) >= 0 <= float(record["value"][1])


def test_every_metric_that_a_rule_names_exists(prometheus, rules):
    names = set(
        re.findall(r"\b(?:nv_inference|text_classifier)_\w+", (rules / "rules.yaml").read_text(encoding="utf-8"))
    )
    assert len(names) >= 6
    assert [name for name in sorted(names) if not prometheus(name)] == []


def test_nobody_is_alarmed_by_a_healthy_server(prometheus):
    assert prometheus('ALERTS{alertstate="firing"}') == []
