"""What a watch sees of several classifiers in one server. The clock is made up; no test waits."""

from __future__ import annotations

import pytest

from build_scripts.serving.keep import verdict
from build_scripts.serving.keep.processes import SLEEPING, Process
from build_scripts.serving.keep.watch import Watch
from tests.serving.keep.test_watch import DEFAULT, LONG_S, NOTICED_S, failure, watch_of
from tests.support.fake_view import ERROR, TIMEOUT, Clock, FakeView, embedded_processes

NAMES = (DEFAULT, "sentiment", "topic")


@pytest.fixture
def several() -> FakeView:
    others = {
        **{20: Process("tokenizer_sentiment", SLEEPING, 0.0), 21: Process("classifier_sentiment", SLEEPING, 0.0)},
        **{30: Process("tokenizer_topic", SLEEPING, 0.0), 31: Process("classifier_topic", SLEEPING, 0.0)},
    }
    return FakeView(Clock(), table=embedded_processes() | others)


@pytest.mark.parametrize(
    ("answer", "said"), [(ERROR, "inference of topic fails: HTTP 500"), (TIMEOUT, "inference of topic hangs: nothing")]
)
def test_failing_classifier_of_several_is_named(several, answer, said):
    several.answers["topic"] = answer
    assert failure(several, *NAMES).startswith(said)


def test_another_busy_classifier_does_not_hide_a_hung_one(several):
    several.answers["topic"] = TIMEOUT
    several.cores[21] = 1.0
    several.runnable.add(21)
    assert failure(several, *NAMES).startswith("inference of topic hangs")


def test_busy_classifier_of_several_is_left_alone(several):
    several.answers["topic"] = TIMEOUT
    several.runnable.add(31)
    assert watch_of(several, *NAMES).run(LONG_S / 3) is None


def test_overloaded_classifier_of_several_is_named(several):
    several.refusing["_sentiment"] = 20.0
    watch = watch_of(several, *NAMES)
    watch.run(60.0)
    assert watch.told[-1] == (verdict.OVERLOADED, "most requests to sentiment are refused")


def test_classifiers_take_turns(several):
    assert watch_of(several, *NAMES).run(10.0) is None
    assert several.probed[:6] == 2 * list(NAMES)


def test_classifier_of_a_release_is_watched_too(several):
    names = [DEFAULT]
    watch = Watch(several, several.clock, lambda: names, lambda *_: None)
    watch.run(5.0)
    names.append("topic")
    several.answers["topic"] = ERROR
    assert watch.run(NOTICED_S).startswith("inference of topic fails")
