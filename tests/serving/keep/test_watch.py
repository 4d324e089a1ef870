"""What a watch takes for a failure, and what it leaves alone."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.options import Address
from build_scripts.serving.keep import processes, watch
from build_scripts.serving.keep.watch import Watch
from build_scripts.serving.start.tritonserver import TritonProcess
from tests.support.background import in_background
from tests.support.fake_frontend import Frontend
from tests.support.servers import wait_for

pytestmark = pytest.mark.slow  # each waits for seconds, for something to be noticed or not

# A hang is noticed in 1.4 s, or in 2.9 s where the statistics hang too; a busy machine may take longer.
GIVEN_UP_WITHIN_S, LEFT_ALONE_S = 6.0, 2.5


@pytest.fixture
def idle(process) -> TritonProcess:
    return process("sleep", "60")


@pytest.fixture
def with_stubs(process, tmp_path) -> Iterator[Callable[..., TritonProcess]]:
    """with_stubs(model=script, …): has a child for each, whose command line is a stub's and which runs the script."""
    servers = []

    def start(**scripts: str) -> TritonProcess:
        for model, script in scripts.items():
            stub = tmp_path / model / "1" / "model.py"
            stub.parent.mkdir(parents=True)
            stub.write_text(script)
        children = "".join(f"sh '{tmp_path / model / '1' / 'model.py'}' & " for model in scripts)
        # The limit ends it where this test was killed and cannot.
        servers.append(process("sh", "-c", f"ulimit -t 20; {children}wait"))
        parent = psutil.Process(servers[-1].process.pid)
        # Before that a stub is a copy of its parent, by its name too.
        stubs = [str(tmp_path / model / "1" / "model.py") for model in scripts]
        wait_for(
            lambda: sorted(one.cmdline()[-1] for one in parent.children()) == sorted(stubs),
            GIVEN_UP_WITHIN_S,
            "no stubs",
        )
        return servers[-1]

    yield start
    for server in servers:
        # First, so that it does not become an orphan, which some containers take seconds to bury.
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        server.process.wait(GIVEN_UP_WITHIN_S)


# Under its own name: `exec sleep` would give up the command line of a stub.
COMPUTES, SLEEPS = "while :; do :; done\n", "while :; do sleep 0.5; done\n"


@pytest.fixture
def computing(with_stubs) -> TritonProcess:
    return with_stubs(classifier=COMPUTES)


def watch_of(server: TritonProcess, port: int) -> Watch:
    return Watch(server, Address(http_port=port), threading.Event())


def failure(server: TritonProcess, port: int) -> str | None:
    """What the watch returns, which it has to do by itself."""
    watching = watch_of(server, port)
    with in_background(watching.run, stop=watching.stop) as result:
        return result.result(GIVEN_UP_WITHIN_S)


def test_a_frontend_that_never_answers_hangs(idle):
    with socket.create_server(("127.0.0.1", 0), backlog=16) as mute:
        found = failure(idle, mute.getsockname()[1])
    assert found.startswith("inference hangs: nothing was answered for ")


@pytest.mark.parametrize(("status", "why"), [(None, "timed out"), (503, "HTTP 503: overload")])
def test_inference_that_fails_while_nothing_computes_hangs(frontend, idle, status, why):
    found = failure(idle, frontend(status).server_port)
    assert found.startswith("inference hangs: nothing was answered for ")
    assert why in found


def test_what_a_classifier_has_computed_before_does_not_count(frontend, with_stubs, tmp_path):
    done = tmp_path / "done"
    server = with_stubs(classifier=f"i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); done; touch '{done}'; sleep 60\n")
    wait_for(done.exists, 60.0, "still computing")
    found = failure(server, frontend(None).server_port)
    assert found.startswith("inference hangs: nothing was answered for ")


def left_alone(server: TritonProcess, front: Frontend, enough: Callable[[], bool]) -> bool:
    """Whether the server is still watched once `enough` has happened."""
    watching = watch_of(server, front.server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        wait_for(lambda: enough() or result.done(), LEFT_ALONE_S + GIVEN_UP_WITHIN_S, "not watched")
        alone = not result.done()
        watching.stop.set()
        front.closing.set()
        return result.result(GIVEN_UP_WITHIN_S) is None and alone


def for_seconds(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since this was called."""
    began = time.monotonic()
    return lambda: time.monotonic() - began > seconds


@pytest.mark.parametrize("status", [None, 503], ids=["no answer", "overloaded"])
def test_a_classifier_that_computes_is_left_alone(frontend, computing, status):
    front = frontend(status)
    assert left_alone(computing, front, for_seconds(LEFT_ALONE_S))
    assert front.asked


def test_a_classifier_that_computes_for_ever_is_not(frontend, computing, monkeypatch):
    monkeypatch.setattr(watch, "BUSY_LIMIT_S", LEFT_ALONE_S)
    found = failure(computing, frontend(None).server_port)
    assert float(re.fullmatch(r"inference hangs: nothing was answered for (.*) s \(.*\)", found)[1]) > LEFT_ALONE_S


def test_a_tokenizer_that_computes_is_left_alone(frontend, with_stubs, monkeypatch):
    """A classifier has nothing to do while the only texts in the server are being cut."""
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", 0.0)
    front = frontend(None)
    server = with_stubs(tokenizer=COMPUTES, classifier=SLEEPS)
    assert left_alone(server, front, for_seconds(LEFT_ALONE_S))


def test_a_tokenizer_that_is_busy_with_refusals_does_not_hide_an_idle_classifier(frontend, with_stubs):
    found = failure(with_stubs(tokenizer=COMPUTES, classifier=SLEEPS), frontend(503).server_port)
    assert "HTTP 503: overload" in found


@pytest.fixture
def inside(with_stubs, monkeypatch) -> TritonProcess:
    """NVIDIA's backend: tritonserver runs the classifier, and here it works, at that or at refusals."""
    monkeypatch.setattr(processes, "model_of", lambda stub: "tokenizer" if "tokenizer" in stub.cmdline()[-1] else "")
    monkeypatch.setattr(watch, "IDLE_SHARE", 0.001)  # two that compute get little of a busy machine
    return with_stubs(tokenizer=COMPUTES, other=COMPUTES)


@pytest.mark.parametrize("status", [503, None], ids=["overloaded", "no answer"])
def test_a_classifier_inside_tritonserver_that_finishes_nothing_hangs(frontend, inside, monkeypatch, status):
    """However much tritonserver computes meanwhile. While it refuses nobody, a tokenizer that computes counts, too."""
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", 1.5)
    monkeypatch.setattr(watch, "BUSY_LIMIT_S", 60.0 if status else 1.5)
    assert failure(inside, frontend(status).server_port).startswith("inference hangs")


@pytest.mark.parametrize(
    ("computes", "seconds"), [(True, 0.0001), (False, 0.1)], ids=["finishes batches", "a full batch takes long"]
)
def test_a_classifier_inside_tritonserver_that_may_compute_is_left_alone(
    frontend, inside, monkeypatch, computes, seconds
):
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", 0.8)
    monkeypatch.setattr(watch, "PROBE_TIMEOUT_S", 60.0)  # of the looks in which a busy machine let nobody compute
    front = frontend(503)
    front.computes, front.seconds = computes, seconds
    assert left_alone(inside, front, for_seconds(LEFT_ALONE_S))


@pytest.mark.parametrize(("limit_s", "hangs"), [(0.0, True), (60.0, False)])
def test_tritonserver_itself_may_work_for_a_while(frontend, with_stubs, monkeypatch, limit_s, hangs):
    """Over a body that it unpacks, while its models wait."""
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", limit_s)
    front, server = frontend(None), with_stubs(other=COMPUTES, classifier=SLEEPS)
    monkeypatch.setattr(processes, "model_of", lambda stub: "classifier" if "classifier" in stub.cmdline()[-1] else "")
    if hangs:
        assert failure(server, front.server_port).startswith("inference hangs")
    else:
        assert left_alone(server, front, for_seconds(LEFT_ALONE_S))


def test_a_server_that_answers_is_left_alone(frontend, idle):
    """A refusal between two answers included, even if nothing computes at that moment."""
    front = frontend(200, 200, 200, 200, 503, 200)
    assert left_alone(idle, front, lambda: front.asked >= 7)


def test_a_stop_does_not_wait_for_a_probe(frontend, idle, monkeypatch):
    monkeypatch.setattr(watch, "PROBE_TIMEOUT_S", 60.0)
    front, began = frontend(None), time.monotonic()
    watching = watch_of(idle, front.server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        wait_for(lambda: front.asked, GIVEN_UP_WITHIN_S, "never probed")
        watching.stop.set()
        assert result.result(GIVEN_UP_WITHIN_S) is None
    assert time.monotonic() - began < GIVEN_UP_WITHIN_S


def test_a_server_that_answers_others_but_not_the_supervisor_is_left_alone(frontend, idle):
    front = frontend(None)
    front.busy = True
    assert left_alone(idle, front, for_seconds(LEFT_ALONE_S))


def test_a_server_that_answers_others_is_not_asked(frontend, idle):
    front = frontend(200)

    def count() -> bool:
        front.successes += 1
        return passed()

    passed = for_seconds(LEFT_ALONE_S)
    assert left_alone(idle, front, count)
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


def test_a_killed_process_is_named_if_inference_fails(frontend, killed):
    found = failure(killed, frontend(None).server_port)
    assert re.fullmatch(r"process \d+ of the server was killed, and inference fails", found)


def test_a_stopped_process_is_named_if_inference_fails(frontend, process):
    server = process("sh", "-c", "sleep 60 & wait")
    wait_for(psutil.Process(server.process.pid).children, GIVEN_UP_WITHIN_S, "no child")
    (child,) = psutil.Process(server.process.pid).children()
    child.suspend()
    try:
        found = failure(server, frontend(None).server_port)
    finally:
        child.kill()
    assert found == f"process {child.pid} of the server is stopped, and inference fails"


def test_a_killed_process_without_which_inference_goes_on_is_ignored(frontend, killed):
    front = frontend(200)
    assert left_alone(killed, front, lambda: front.asked >= 3)


def test_an_internal_error_is_a_failure_with_its_reason(frontend, computing):
    found = failure(computing, frontend(500).server_port)
    assert found == "inference fails: HTTP 500: stub is not healthy"


def test_a_server_that_ended_is_reported_with_its_exit_code(process):
    server = process("sh", "-c", "exit 7")
    server.process.wait()
    assert failure(server, free_ports(1)[0]) == "tritonserver ended with code 7"


def watch_of_names(server: TritonProcess, port: int) -> Watch:
    return Watch(server, Address(http_port=port), threading.Event(), ["text_classifier", "sentiment", "topic"])


@pytest.mark.parametrize(
    ("status", "said"), [(500, "inference of topic fails: HTTP 500"), (None, "inference of topic hangs: nothing was")]
)
def test_one_classifier_of_several_that_fails_is_found_and_named(frontend, idle, status, said):
    watching = watch_of_names(idle, frontend(200, topic=status).server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        assert result.result(2 * GIVEN_UP_WITHIN_S).startswith(said)


def test_a_process_that_was_killed_is_told_with_the_classifier_that_fails(frontend, killed):
    watching = watch_of_names(killed, frontend(200, topic=500).server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        found = result.result(GIVEN_UP_WITHIN_S)
    assert re.fullmatch(r"process \d+ of the server was killed, and inference of topic fails", found)


def test_another_classifier_that_computes_does_not_hide_one_that_hangs(frontend, with_stubs, monkeypatch):
    """It may take the processor for a while, not for as long as a batch may take."""
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", 1.0)
    server = with_stubs(classifier_sentiment=COMPUTES, classifier_topic=SLEEPS)
    watching = watch_of_names(server, frontend(200, topic=None).server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        assert result.result(2 * GIVEN_UP_WITHIN_S).startswith("inference of topic hangs")


def test_a_classifier_of_several_that_computes_is_left_alone(frontend, with_stubs, monkeypatch):
    monkeypatch.setattr(watch, "FRONTEND_LIMIT_S", 0.0)
    front = frontend(200, topic=None)
    watching = watch_of_names(with_stubs(classifier_sentiment=SLEEPS, classifier_topic=COMPUTES), front.server_port)
    with in_background(watching.run, stop=watching.stop) as result:
        wait_for(for_seconds(2 * LEFT_ALONE_S), 2 * LEFT_ALONE_S + GIVEN_UP_WITHIN_S, "time")
        assert not result.done()
        watching.stop.set()
        front.closing.set()
        assert result.result(GIVEN_UP_WITHIN_S) is None


def test_all_classifiers_have_their_turn(frontend, idle):
    front = frontend(200)
    watching = watch_of_names(idle, front.server_port)
    watching.successes = dict.fromkeys(watching.names, front.successes)
    looked = []
    for _ in range(6):
        looked.append(watching.names[watching.turn % 3])
        assert watching.look() is None
    assert looked == 2 * watching.names
    assert front.asked == 6
