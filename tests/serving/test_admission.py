"""The tokenizer refuses requests while too many wait for the classifier, and only then."""

import contextlib
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from build_scripts.benchmarks.overload import FLOODING, overload, percentile
from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.serving.client import classify
from build_scripts.settings import SOURCE_REPOSITORY, ServingError
from tests.support.servers import running
from tests.support.texts import HEADLINES


class Metrics:
    """Triton's metrics, with as many waiting requests as a test says."""

    def __init__(self):
        self.waiting = {"classifier": 0, "classifier_0123abcd": 0, "tokenizer": 9000, "text_classifier": 9000}
        self.readings = 0
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                metrics.readings += 1
                self.send_response(200)
                self.end_headers()
                for model, count in metrics.waiting.items():
                    gauge = f'nv_inference_pending_request_count{{model="{model}",version="1"}} {count}\n'
                    self.wfile.write(gauge.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def metrics():
    metrics = Metrics()
    thread = threading.Thread(target=metrics.server.serve_forever)
    thread.start()
    with contextlib.closing(metrics.server.socket):
        yield metrics
        metrics.server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def admission():
    """The module beside the tokenizer's model.py."""
    file = SOURCE_REPOSITORY / "tokenizer" / "1" / "admission.py"
    spec = importlib.util.spec_from_file_location("admission", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_so_many_are_admitted_as_the_gauge_leaves_room_for(admission, metrics, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now[0]))
    metrics.waiting["classifier"], metrics.waiting["classifier_0123abcd"] = 90, 3
    gate = admission.Admission(100, metrics.address, warn=pytest.fail)
    assert gate.admit(5) == 5
    assert gate.admit(5) == 2
    assert gate.admit(5) == 0
    assert metrics.readings == 1
    metrics.waiting["classifier"] = 0
    now[0] += admission.READ_EVERY_S
    assert gate.admit(50) == 50


def test_a_queue_over_the_limit_admits_nobody(admission, metrics):
    metrics.waiting["classifier"] = 101
    assert admission.Admission(100, metrics.address, warn=pytest.fail).admit(1) == 0


def test_the_gauge_is_read_once_in_as_many_requests_as_the_limit(admission, metrics):
    gate = admission.Admission(100, metrics.address, warn=pytest.fail)
    assert [gate.admit(10) for _ in range(10)] == [10] * 10
    assert metrics.readings == 1


def test_without_metrics_nobody_is_refused_and_that_is_said_once(admission):
    warnings = []
    gate = admission.Admission(3, f"127.0.0.1:{free_ports(1)[0]}", warnings.append)
    for _ in range(4):
        assert gate.admit(1000) == 1000
        gate.next_reading = 0.0
    assert len(warnings) == 1
    assert "metrics cannot be read" in warnings[0]


@pytest.mark.server
def test_a_flood_is_refused_at_once_and_leaves_no_trace(default_repository, tmp_path):
    """Times are the benchmark's; that everybody is answered, and the server as before, is tested here."""
    stop, refusals = threading.Event(), []

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                list(classify(["Museum reopens"], url))
            except ServingError as error:
                refusals.append(str(error))

    with running(default_repository, tmp_path / "output.txt", "--precision", "fp32") as server:
        asking = threading.Thread(target=ask, args=(server.grpc,))
        asking.start()
        try:
            found = overload(server.address, server.process.pid, HEADLINES[:100], 3.0)
        finally:
            stop.set()
            asking.join()
        assert "restarting" not in server.said()
    assert refusals
    assert all("overload: 128 requests wait" in refusal and "try again" in refusal for refusal in refusals)
    for calm in (found.before, found.after):
        assert (list(calm.latencies_ms), calm.unanswered) == ([200], 0)
    assert (found.others, found.flood.unanswered) == (0, 0)
    accepted, refused = found.flood.latencies_ms[200], found.flood.latencies_ms[503]
    assert len(accepted) > FLOODING
    assert len(refused) > len(accepted)
    assert percentile(refused, 0.5) < percentile(accepted, 0.5)
