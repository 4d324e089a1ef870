"""The tokenizer refuses requests only while too many wait for the classifier."""

import importlib.util
import threading
from types import SimpleNamespace

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.errors import ServingError
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.serving.client import classify
from tests.soak.overload import overload
from tests.support.http_stand_in import Reply, Request, StandIn
from tests.support.servers import running
from tests.support.texts import HEADLINES
from tests.support.waiting import HANG_S, wait_for


class Metrics(StandIn):
    """Triton's metrics. waiting: requests by model. more: further lines of the page."""

    def __init__(self):
        self.waiting = {"classifier": 0, "classifier_0123456789ab": 0, "tokenizer": 9000, "text_classifier": 9000}
        self.more = ""
        self.status = 200
        self.readings = 0
        self.answering = threading.Event()
        self.answering.set()
        super().__init__(self.page)
        self.address = f"127.0.0.1:{self.port}"

    def page(self, _: Request) -> Reply:
        self.readings += 1
        self.answering.wait(HANG_S)
        gauges = [
            f'nv_inference_pending_request_count{{model="{model}",version="1"}} {count}'
            for model, count in self.waiting.items()
        ]
        return Reply(self.status, "\n".join([*gauges, self.more, ""]).encode())


@pytest.fixture
def metrics():
    with Metrics() as metrics:
        yield metrics
        metrics.answering.set()


@pytest.fixture(scope="module")
def admission():
    """The module beside the tokenizer's model.py."""
    file = SOURCE_REPOSITORY / "tokenizer" / "1" / "admission.py"
    spec = importlib.util.spec_from_file_location("admission", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def patient(admission, monkeypatch):
    """Every call waits for its reading, however busy the machine is."""
    monkeypatch.setattr(admission, "WAIT_S", 60.0)


@pytest.mark.usefixtures("patient")
def test_admits_what_the_gauge_leaves_room_for(admission, metrics, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now[0]))
    metrics.waiting["classifier"], metrics.waiting["classifier_0123456789ab"] = 90, 3
    gate = admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail)
    assert gate.admit(5) == 5
    assert gate.admit(5) == 2
    assert gate.admit(5) == 0
    assert metrics.readings == 1
    metrics.waiting["classifier"] = 0
    now[0] += admission.READ_INTERVAL_S
    assert gate.admit(50) == 50


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "held",
    [
        'text_classifier_held_requests{model="classifier",process="41"} 40\n'
        'text_classifier_held_requests{model="classifier",process="42"} 57\n',
        'text_classifier_held_requests{process="41",model="classifier"} 97.0\n',
    ],
)
def test_requests_held_by_the_backend_count(admission, metrics, held):
    metrics.waiting["classifier"], metrics.more = 1, f"# TYPE text_classifier_held_requests gauge\n{held}"
    assert admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail).admit(5) == 2


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("tokenizer", "room"),
    [
        ("tokenizer", 10),
        ("tokenizer_0123456789ab", 10),
        ("tokenizer_topic", 20),
        ("tokenizer_topic_0123456789ab", 20),
        ("tokenizer_topic_2", 30),
    ],
)
def test_each_classifier_has_its_limit(admission, metrics, tokenizer, room):
    """A flood of one classifier leaves the others' requests alone."""
    metrics.waiting = {
        **{"classifier": 40, "classifier_0123456789ab": 50, "classifier_topic": 70, "classifier_topic_2": 70},
        **{"topic": 9000, "tokenizer_topic": 9000},
    }
    metrics.more = 'text_classifier_held_requests{model="classifier_topic",process="41"} 10\n'
    assert admission.Admission(100, metrics.address, tokenizer, warn=pytest.fail).admit(100) == room


@pytest.mark.usefixtures("patient")
def test_full_queue_admits_nothing(admission, metrics):
    metrics.waiting["classifier"] = 101
    assert admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail).admit(1) == 0


@pytest.mark.usefixtures("patient")
def test_reads_the_gauge_once_per_limit_of_requests(admission, metrics):
    gate = admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail)
    assert [gate.admit(10) for _ in range(10)] == [10] * 10
    assert metrics.readings == 1


def another_service(metrics: Metrics) -> None:
    metrics.waiting, metrics.more = {}, "<html>welcome</html>"


def only_the_tokenizer(metrics: Metrics) -> None:
    del metrics.waiting["classifier"], metrics.waiting["classifier_0123456789ab"]


UNREADABLE = {
    "not found": (lambda metrics: setattr(metrics, "status", 404), "status 404"),
    "an error that shows the gauge": (lambda metrics: setattr(metrics, "status", 500), "status 500"),
    "another service": (another_service, "no gauge nv_inference_pending_request_count"),
    "a Triton without the gauge": (only_the_tokenizer, "no gauge nv_inference_pending_request_count"),
    "nobody there": (lambda metrics: setattr(metrics, "address", f"127.0.0.1:{free_ports(1)[0]}"), "refused"),
}


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("what", UNREADABLE)
def test_admits_everything_without_the_gauge_and_warns_once(admission, metrics, what):
    spoil, reason = UNREADABLE[what]
    spoil(metrics)
    warnings = []
    gate = admission.Admission(3, metrics.address, "tokenizer", warnings.append)
    for _ in range(4):
        assert gate.admit(1000) == 1000
        gate.next_reading = 0.0
    [warning] = warnings
    assert "no request is refused for overload" in warning
    assert metrics.address in warning
    assert reason in warning


@pytest.mark.usefixtures("patient")
def test_warns_again_after_the_gauge_was_readable(admission, metrics):
    warnings = []
    gate = admission.Admission(100, metrics.address, "tokenizer", warnings.append)
    for status, admitted in ((404, 200), (404, 200), (200, 100), (404, 200), (404, 200)):
        metrics.status, gate.next_reading = status, 0.0
        assert gate.admit(200) == admitted
    assert len(warnings) == 2


def test_hanging_metrics_delay_nobody(admission, metrics, monkeypatch):
    monkeypatch.setattr(admission, "TIMEOUT_S", 60.0)
    metrics.answering.clear()
    gate = admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail)
    assert [gate.admit(200) for _ in range(50)] == [200] * 50
    assert not metrics.answering.is_set()
    assert metrics.readings <= 1  # the first is in progress
    metrics.answering.set()
    wait_for(lambda: gate.reading is None, "the reading never ended")
    gate.next_reading = float("inf")
    assert gate.admit(200) == 100


def test_last_reading_is_trusted_until_it_is_stale(admission, metrics, monkeypatch):
    now = [10.0]
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now[0]))
    metrics.waiting["classifier"] = 100
    gate = admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail)
    gate.admit(1)
    wait_for(lambda: gate.reading is None, "the reading never ended")
    metrics.answering.clear()
    now[0] += admission.READ_INTERVAL_S
    assert gate.admit(5) == 0
    assert gate.reading is not None
    now[0] += admission.STALE_S
    assert gate.admit(5) == 5


def test_idle_server_refuses_nobody_during_a_slow_reading(admission, metrics, monkeypatch):
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 10.0))
    gate = admission.Admission(100, metrics.address, "tokenizer", warn=pytest.fail)
    gate.refresh()
    wait_for(lambda: gate.room == 100, "the reading never ended")
    gate.next_reading = 0.0
    assert [gate.admit(1) for _ in range(100)] == [1] * 100
    metrics.answering.clear()  # the next reading never ends in this test
    assert [gate.admit(1) for _ in range(100)] == [1] * 100
    assert gate.admit(1) == 0  # a flood is still refused


def test_gives_up_an_endless_answer(admission, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: next(now)))
    endless = SimpleNamespace(read1=lambda size: b"data: 1\n")
    with pytest.raises(TimeoutError, match="takes longer than 3 s"):
        admission.read_within(3.0, endless)


@pytest.mark.server
def test_flood_is_answered_or_refused_and_leaves_no_trace(default_repository, tmp_path):
    """Every request gets a 200 or a 503, and afterwards the server answers as before. Times are the soak's job."""
    stop, refusals = threading.Event(), []

    def ask(url: str) -> None:
        while not stop.is_set():
            try:
                list(classify(["Museum reopens"], url, patience_s=0))
            except ServingError as error:
                refusals.append(str(error))

    with running(default_repository, tmp_path / "output.txt", "--precision", "fp32") as server:
        # Several, because one whose request was accepted may wait for an answer until the flood is over.
        asking = [threading.Thread(target=ask, args=(server.grpc,)) for _ in range(8)]
        for one in asking:
            one.start()
        try:
            found = overload(server.address, server.process.pid, HEADLINES[:100], 4.0)
        finally:
            stop.set()
            for one in asking:
                one.join()
        assert "restarting" not in server.said()
    assert refusals
    assert all("overload: 128 requests wait" in refusal and "try again" in refusal for refusal in refusals)
    for calm in (found.before, found.after):
        assert (list(calm.latencies_ms), calm.unanswered) == ([200], 0)
    assert (found.others, found.flood.unanswered) == (0, 0)
    assert set(found.flood.latencies_ms) == {200, 503}
