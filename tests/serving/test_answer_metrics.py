"""Metrics of answers: a counter per class id, and a histogram of the winning probability."""

from __future__ import annotations

import json
import os
import re
import sys

import httpx
import numpy as np
import pytest

from build_scripts.core.names import CLASSIFIER
from tests.support import fake_triton
from tests.support.servers import embedded, post
from tests.support.texts import HEADLINES
from tests.support.token_batches import batch
from tests.support.waiting import wait_for

FAMILY = "text_classifier_"


@pytest.fixture
def backend(load, monkeypatch):
    """Its thread does not flush; the test does."""
    monkeypatch.setattr(sys.modules["answers"], "FLUSH_INTERVAL_S", 3600.0)
    monkeypatch.setattr(fake_triton.MetricFamily, "families", {})
    backend = load()
    yield backend
    backend.finalize()


@pytest.fixture
def answers(backend):
    """The metrics of a classifier that was never asked."""
    return backend.answers


def counted(name: str) -> dict[str, float]:
    """Sums by class id or bucket; empty if there is no such family."""
    family = fake_triton.MetricFamily.families.get(FAMILY + name)
    told = family.told if family else {}
    return {dict(labels).get("class_id", dict(labels).get("le", "")): sum(values) for labels, values in told.items()}


def test_counts_class_ids_and_winning_probabilities(answers):
    probabilities = np.array([[0.1, 0.9], [0.55, 0.45], [0.04, 0.96], [0.0, 1.0]], dtype=np.float32)
    answers.add([probabilities.argmax(1)[:, None], probabilities])
    answers.flush()
    answers.add([np.array([[1]]), probabilities[:1]])
    answers.flush()
    answers.flush()
    assert counted("answers_total") == {"0": 1, "1": 4}
    buckets = counted("probability_bucket")
    assert {bound: buckets[bound] for bound in ("0.5", "0.6", "0.9", "0.95", "0.99", "+Inf")} == {
        "0.5": 0, "0.6": 1, "0.9": 3, "0.95": 3, "0.99": 4, "+Inf": 5,
    }  # fmt: skip
    assert counted("probability_count") == {"": 5}
    assert counted("probability_sum")[""] == pytest.approx(0.9 + 0.55 + 0.96 + 1.0 + 0.9)


def test_scores_are_not_counted(answers):
    """A score can be negative, which a counter of Triton refuses."""
    answers.add([np.zeros((3, 1), dtype=np.int64), np.array([[-8.5], [0.3], [11.0]], dtype=np.float32)])
    answers.flush()
    assert counted("answers_total") == counted("probability_count") == {}


@pytest.mark.parametrize(("classes", "counters"), [(200, {"3": 1, "199": 1}), (201, {})])
def test_many_classes_have_the_histogram_only(answers, classes, counters):
    answers.add([np.array([[3], [199]]), np.full((2, classes), 0.5, dtype=np.float32)])
    answers.flush()
    assert counted("answers_total") == counters
    assert counted("probability_count") == {"": 2}


def test_large_answers_are_reduced_at_once(answers):
    """Five seconds of them would take gigabytes."""
    answers.add([np.full((64, 1), 7), np.full((64, 200), 0.25, dtype=np.float32)])
    assert [one.nbytes for _, one in answers.waiting] == [64 * 4]
    answers.flush()
    assert counted("answers_total") == {"7": 64}
    assert counted("probability_sum") == {"": 16.0}


def test_a_candidate_counts_under_the_models_name_in_its_own_process(load):
    """Triton frees a counter with the first process that owns it; so no two processes may share one."""
    release = "0123456789ab"
    backend = load(('name: "classifier"', f'name: "classifier_{release}"'))
    backend.answers.close()
    answers = type(backend.answers)(f"classifier_{release}", release)
    assert answers.labels == {"model": "classifier", "release": release, "process": str(os.getpid())}
    answers.close()
    backend.finalize()


def test_a_server_without_metrics_counts_nothing(load, monkeypatch, capfd):
    backend = load()
    monkeypatch.setattr(sys.modules["answers"], "FLUSH_INTERVAL_S", 0.01)

    def refuse(*_, **__):
        raise fake_triton.TritonModelException("metrics are disabled")

    monkeypatch.setattr(fake_triton.MetricFamily, "__init__", refuse)
    answers = type(backend.answers)("classifier", "")
    rows = [np.array([[1]]), np.array([[0.1, 0.9]], dtype=np.float32)]
    answers.add(rows)
    wait_for(answers.ending.is_set, "the thread goes on")
    answers.thread.join()
    assert "no metrics of answers: metrics are disabled" in capfd.readouterr().err
    answers.add(rows)
    assert not answers.waiting
    answers.close()
    backend.finalize()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("handed_over", [False, True])
def test_every_answer_is_counted_except_probes(backend, subject, handed_over):
    """Whether `execute` or the worker computes it."""
    ids, mask = batch(subject("bert"), [7, 20, 11])
    requests = [fake_triton.Request(INPUT__0=ids[:2].numpy(), INPUT__1=mask[:2].numpy())]
    requests += [fake_triton.Request(INPUT__0=ids[2:].numpy(), INPUT__1=mask[2:].numpy()) for _ in range(2)]
    requests[1].id = "health"
    if handed_over:
        backend.worker.schedule.rate = 1e-9
    backend.execute(requests)
    wait_for(lambda: all(request.sent for request in requests), "no answer")
    backend.answers.flush()
    assert sum(counted("answers_total").values()) == 3
    assert counted("probability_count") == {"": 3}


def test_model_with_other_outputs_is_not_counted(load):
    backend = load(('"OUTPUT__0", data_type: TYPE_INT64', '"OUTPUT__0", data_type: TYPE_INT32'))
    assert backend.answers is None
    backend.finalize()


@pytest.mark.skipif(not embedded(), reason="NVIDIA's backend has no metrics of answers")
def test_real_server_shows_answers_and_leaves_probes_out(default_server):
    def metrics() -> dict[str, float]:
        page = httpx.get(f"http://{default_server.address.metrics_address}/metrics").text
        series = re.findall(r"^text_classifier_answers_total{(.*)} ([\d.e+]+)$", page, re.MULTILINE)
        return {
            re.search('class_id="(.*?)"', labels)[1]: float(value) for labels, value in series if CLASSIFIER in labels
        }

    before = sum(metrics().values())
    body = {"inputs": [{"name": "TEXT", "shape": [50, 1], "datatype": "BYTES", "data": HEADLINES[:50]}]}
    url = f"{default_server.http}/v2/models/text_classifier/infer"
    status, answer = post(url, body)
    assert status == 200
    (ids,) = (output["data"] for output in json.loads(answer)["outputs"] if output["name"] == "CLASS_ID")
    wait_for(lambda: sum(metrics().values()) >= before + 50, "the answers were not counted")
    assert {str(one) for one in ids} <= metrics().keys()
    for _ in range(20):
        assert post(url, {"id": "health", **body})[0] == 200
    assert post(url, body)[0] == 200
    wait_for(lambda: sum(metrics().values()) >= before + 100, "the answers were not counted")
    assert sum(metrics().values()) < before + 1000
