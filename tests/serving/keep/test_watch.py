"""What a watch takes for a failure, and what it leaves alone. The clock is made up; no test waits."""

from __future__ import annotations

import re

import pytest

from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.processes import SLEEPING, STOPPED, ZOMBIE, Process
from build_scripts.serving.keep.watch import Watch
from tests.support.fake_view import (
    CLASSIFIER,
    ERROR,
    OVERLOAD,
    TIMEOUT,
    TOKENIZER,
    TRITON,
    Clock,
    FakeView,
    embedded_processes,
)

# A hang is noticed within a few looks of at most 1.4 s each.
NOTICED_S = 8.0
# An hour: longer than any patience, so what holds this long holds for good.
LONG_S = 3600.0
DEFAULT = "text_classifier"


@pytest.fixture
def view() -> FakeView:
    """A server whose classifier has a process, and that only the watch asks."""
    return FakeView(Clock(), table=embedded_processes())


class Watched(Watch):
    """Keeps the verdicts, in order and each once."""

    def __init__(self, view: FakeView, names: list[str]):
        self.told: list[tuple[str, str]] = []
        super().__init__(view, view.clock, lambda: names, lambda *told: self.told.append(told))

    @property
    def words(self) -> list[str]:
        words = [word for word, _ in self.told]
        return [word for index, word in enumerate(words) if index == 0 or words[index - 1] != word]


def watch_of(view: FakeView, *names: str) -> Watched:
    return Watched(view, list(names) or [DEFAULT])


def failure(view: FakeView, *names: str, within_s: float = NOTICED_S) -> str:
    """The reason that the watch gives; it must give one in time."""
    found = watch_of(view, *names).run(within_s)
    assert found, f"nothing noticed within {within_s} s"
    return found


def with_nvidias_backend(view: FakeView) -> None:
    """It computes inside tritonserver."""
    view.embedded = False
    del view.table[CLASSIFIER]


def test_silent_idle_server_hangs(view):
    view.answers[DEFAULT] = TIMEOUT
    assert re.fullmatch(r"inference hangs: nothing was answered for \d+\.\d s \(timed out\)", failure(view))


def test_server_that_refuses_while_its_classifier_idles_hangs(view):
    view.answers[DEFAULT] = OVERLOAD
    view.cores = {TRITON: 0.5, TOKENIZER: 0.5}  # busy with refusals
    assert "HTTP 503: overload" in failure(view)


def test_idle_noise_is_no_work(view):
    """An idle tritonserver uses 2 % of a core."""
    view.answers[DEFAULT] = TIMEOUT
    view.cores[TRITON] = 0.02
    assert failure(view).startswith("inference hangs")


@pytest.mark.parametrize("answer", [TIMEOUT, OVERLOAD], ids=["silent", "refusing"])
@pytest.mark.parametrize("pid", [CLASSIFIER, TRITON], ids=["embedded", "NVIDIA's backend"])
def test_computing_server_is_left_alone(view, answer, pid):
    """For as long as the largest request may take: at 5 ms a token that is 655 s."""
    view.answers[DEFAULT], view.cores[pid], view.seconds_per_token = answer, 1.0, 0.005
    if pid == TRITON:
        with_nvidias_backend(view)
    watch = watch_of(view)
    assert watch.run(500.0) is None
    assert watch.words == [verdict.READY if answer is TIMEOUT else verdict.OVERLOADED]


@pytest.mark.parametrize("pid", [CLASSIFIER, TOKENIZER, TRITON])
@pytest.mark.parametrize("cores", [0.0, 0.001, 0.04])
def test_server_that_waits_for_the_cpu_is_left_alone(view, pid, cores):
    """However little it gets: a load of 8 on 2 cores may leave less than 5 % of a core."""
    view.answers[DEFAULT], view.cores[pid] = TIMEOUT, cores
    view.runnable.add(pid)
    if pid == TRITON:
        with_nvidias_backend(view)
    watch = watch_of(view)
    assert watch.run(LONG_S / 3) is None
    assert watch.words == [verdict.READY]


def test_endless_loop_is_noticed(view):
    """It uses the CPU and never finishes anything."""
    view.answers[DEFAULT], view.cores[CLASSIFIER] = TIMEOUT, 1.0
    assert failure(view, within_s=LONG_S).startswith("inference hangs")


def test_frontend_may_work_for_seconds(view):
    view.answers[DEFAULT], view.cores[TRITON] = TIMEOUT, 1.0
    assert watch_of(view).run(9.0) is None
    assert failure(view, within_s=60.0).startswith("inference hangs")


def test_first_model_work_forgives_idle_periods(view):
    """A request that waits for a timer, then computes, then waits again."""
    view.answers[DEFAULT] = TIMEOUT
    watch = watch_of(view)
    for _ in range(20):
        assert watch.look() is None
        view.runnable ^= {CLASSIFIER}


def test_suspended_machine_is_no_hang(view):
    view.answers[DEFAULT] = TIMEOUT
    view.clock.after(1.0, lambda: view.clock.wait(LONG_S))
    view.clock.after(2.0, lambda: view.answers.clear())
    assert watch_of(view).run(2 * LONG_S) is None


def test_server_that_answers_is_left_alone(view):
    watch = watch_of(view)
    assert watch.run(60.0) is None
    assert watch.words == [verdict.READY]
    assert view.probed


def test_server_that_answers_others_is_not_asked(view):
    view.counting[""] = 10.0
    watch = watch_of(view)
    assert watch.run(60.0) is None
    assert len(view.probed) <= 1  # before there is a count to compare with
    assert watch.words == [verdict.READY]


def test_answers_to_others_prove_a_server_that_times_out_for_the_watch(view):
    """One answer in two seconds, while no process is seen to work."""
    view.answers[DEFAULT], view.counting[""] = TIMEOUT, 0.6
    assert watch_of(view).run(LONG_S) is None


@pytest.mark.parametrize("state", [SLEEPING, ZOMBIE])
def test_few_failed_probes_are_forgiven(view, state):
    """Triton calls a stub unhealthy that gets no CPU for a second; a release may leave a zombie at that moment."""
    view.table[13] = Process("", state, 0.0)
    watch = watch_of(view)
    for _ in range(3):
        view.answers[DEFAULT] = ERROR
        assert watch.look() is None
        assert watch.look() is None
        view.answers.clear()
        assert watch.look() is None


def test_failing_inference_is_a_failure_with_its_reason(view):
    view.answers[DEFAULT] = ERROR
    view.cores[CLASSIFIER] = 1.0
    assert failure(view) == "inference fails: HTTP 500: stub is not healthy"


@pytest.mark.parametrize("pid", [TOKENIZER, CLASSIFIER])
@pytest.mark.parametrize("collected", [True, False])
def test_killed_process_is_named_when_inference_fails(view, pid, collected):
    view.answers[DEFAULT] = ERROR
    model = view.table.pop(pid).model
    if not collected:
        view.table[pid] = Process("", ZOMBIE, 0.0)
    assert failure(view, within_s=1.5) == f"the process of {model} was killed, and inference fails: {ERROR.reason}"


@pytest.mark.parametrize("pid", [TOKENIZER, CLASSIFIER])
def test_answers_from_the_cache_do_not_hide_a_killed_process(view, pid):
    """Probes time out, and tritonserver is busy with texts that it has answered before."""
    view.answers[DEFAULT] = TIMEOUT
    model = view.table.pop(pid).model
    view.cores[TRITON] = 1.0
    assert failure(view).startswith(f"the process of {model} was killed, and inference hangs")


def test_nvidias_backend_has_no_process_to_lose(view):
    view.answers[DEFAULT] = ERROR
    with_nvidias_backend(view)
    assert failure(view) == f"inference fails: {ERROR.reason}"


@pytest.mark.parametrize("answer", [TIMEOUT, OVERLOAD], ids=["silent", "refusing"])
def test_unloaded_process_is_no_failure_on_a_busy_machine(view, answer):
    """A release leaves a zombie until tritonserver gets the CPU, and a busy server answers no probe in time."""
    view.answers[DEFAULT] = answer
    view.table[13] = Process("", ZOMBIE, 0.0)
    view.runnable.add(CLASSIFIER)
    assert watch_of(view).run(LONG_S / 3) is None


@pytest.mark.parametrize("answer", [TIMEOUT, OVERLOAD], ids=["silent", "refusing"])
@pytest.mark.parametrize("pid", [TRITON, TOKENIZER, CLASSIFIER])
def test_stopped_process_is_named_however_busy_the_others_are(view, pid, answer):
    view.answers[DEFAULT] = answer
    view.cores = dict.fromkeys({TRITON, TOKENIZER, CLASSIFIER} - {pid}, 1.0)
    view.table[pid] = view.table[pid]._replace(state=STOPPED)
    assert failure(view).startswith(f"process {pid} of the server is stopped, and inference hangs")


def test_ended_server_is_reported_with_its_exit_code(view):
    view.code = 7
    assert failure(view) == "tritonserver ended with code 7"


def test_stop_abandons_the_probe(view):
    view.answers[DEFAULT] = TIMEOUT
    view.clock.after(0.5, view.clock.set)
    assert watch_of(view).run(LONG_S) is None
    assert view.clock.now() < 1010.0


def test_verdict_is_silent_before_the_server_is_given_up(view):
    view.answers[DEFAULT] = TIMEOUT
    watch = watch_of(view)
    assert watch.run(NOTICED_S)
    assert watch.words == [verdict.SILENT]


@pytest.mark.parametrize(("refused", "word"), [(0.0, verdict.READY), (5.0, verdict.READY), (50.0, verdict.OVERLOADED)])
def test_verdict_is_overloaded_when_most_requests_are_refused(view, refused, word):
    view.counting[""], view.refusing[""] = 10.0, refused
    watch = watch_of(view)
    assert watch.run(60.0) is None
    assert watch.words[-1] == word
    view.refusing[""] = 0.0
    assert watch.run(60.0) is None
    assert watch.words[-1] == verdict.READY
