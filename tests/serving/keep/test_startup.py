"""How a start is awaited. The clock is made up; no test waits."""

from __future__ import annotations

import pytest

from build_scripts.serving.keep.processes import STOPPED, ZOMBIE, Process
from build_scripts.serving.keep.server_log import last_error
from build_scripts.serving.keep.startup import REAP_S, Startup
from build_scripts.serving.start.tritonserver import LOAD_LIMIT_S
from tests.support.fake_view import OVERLOAD, TIMEOUT, TOKENIZER, TRITON, Clock, FakeView, embedded_processes

DEFAULT = "text_classifier"


@pytest.fixture
def view() -> FakeView:
    return FakeView(Clock(), table=embedded_processes())


@pytest.fixture
def start(view, tmp_path):
    """start(): what `wait` returns."""
    log = tmp_path / "tritonserver.log"
    log.write_text("I1 loading\nI2 pb_stub.cc:366] Failed to initialize Python stub: no file\nI3 unloading\n")
    told = []
    startup = Startup(view, view.clock, log, lambda *what: told.append(what))
    return lambda *names: startup.wait(names or [DEFAULT])


def test_start_ends_with_an_answer_of_every_classifier(view, start):
    view.answers["topic"] = TIMEOUT
    view.clock.after(30.0, view.answers.clear)
    assert start(DEFAULT, "topic") is None
    assert 30.0 < view.now() - 1000.0 < 40.0


def test_a_refusal_is_no_answer(view, start):
    view.answers[DEFAULT] = OVERLOAD
    assert "no inference answered within" in start()
    assert view.now() - 1000.0 > LOAD_LIMIT_S


def test_ended_server_is_reported_with_tritons_reason(view, start):
    view.answers[DEFAULT], view.code = TIMEOUT, 1
    assert start().startswith("could not start: tritonserver ended with code 1: I2 pb_stub.cc:366] Failed to init")


def test_answers_of_another_server_do_not_count(view, start):
    """It has the port; ours ends because of that, a moment later."""
    view.listening = False
    view.clock.after(5.0, lambda: setattr(view, "code", 1))
    assert start().startswith("could not start: tritonserver ended with code 1")
    assert view.probed == []


@pytest.mark.parametrize(("state", "what"), [(ZOMBIE, "was killed"), (STOPPED, "is stopped")])
def test_broken_process_beside_an_idle_tritonserver_ends_the_wait(view, start, state, what):
    view.answers[DEFAULT] = TIMEOUT
    view.table[TOKENIZER] = Process("", state, 0.0)
    assert f"process {TOKENIZER} of the server {what}: I2 pb_stub" in start()
    assert view.now() - 1000.0 < 60.0


@pytest.mark.parametrize("waits_s", [REAP_S / 2, 60.0])
def test_process_that_tritonserver_reaps_later_is_not_broken(view, start, waits_s):
    """Triton runs each stub once without arguments, and on a busy machine waits for the CPU before it reaps it."""
    view.answers[DEFAULT] = TIMEOUT
    view.table[13] = Process("", ZOMBIE, 0.0)
    view.runnable.add(TRITON)
    view.clock.after(waits_s, lambda: (view.table.pop(13), view.answers.clear()))
    assert start() is None


def test_stop_ends_the_wait(view, start):
    view.answers[DEFAULT] = TIMEOUT
    view.clock.after(2.0, view.clock.set)
    assert start() is None
    assert view.now() - 1000.0 < 10.0


def test_log_without_a_known_reason_is_quoted(tmp_path):
    """A container's log is lost with the container."""
    log = tmp_path / "tritonserver.log"
    assert last_error(log) == f"see {log}"
    log.write_text("I1 started\nE2 the library is missing\n\n", encoding="utf-8")
    assert last_error(log) == f"E2 the library is missing (full log: {log})"
    log.write_text("E1 failed to load 'classifier'\nI2 waiting\n", encoding="utf-8")
    assert last_error(log).startswith("E1 failed to load 'classifier' (")
