"""The load client of the benchmarks and the soak, and the processes that they start."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from typing import Any

import psutil
import pytest
import torch

from build_scripts.benchmarks import http_load, subprocesses
from build_scripts.core.errors import ServingError
from tests.support.recorder import Recorder
from tests.support.texts import VARIED


def answers_of(server: Recorder, seconds: float = 0.3, **how: Any) -> http_load.Answers:
    with server:
        return http_load.load(server.port, "/x", [{"text": "é"}, {"text": "b"}], seconds, **how)


def test_closed_loop_keeps_every_connection_busy():
    server = Recorder(meeting=3)
    answers = answers_of(server, concurrency=3)
    latencies = answers.all_ok("recorder")
    assert len(latencies) == len(server.bodies) >= 3
    assert answers.rate == len(latencies) / answers.seconds
    assert (server.most_at_once, server.connections) == (3, 3)
    assert latencies == sorted(latencies)
    assert latencies[0] >= 10
    sent = [json.loads(body)["text"] for body in server.bodies]
    assert set(sent) == {"é", "b"}


def test_counts_refusals_by_status():
    server = Recorder(status=503)
    answers = answers_of(server, concurrency=2)
    assert {status: len(ms) for status, ms in answers.latencies_ms.items()} == {503: len(server.bodies)}
    assert answers.rate == 0
    with pytest.raises(ServingError, match=r"recorder failed under load: \{503: \d+\}, 0 without an answer"):
        answers.all_ok("recorder")


def test_client_pauses_after_each_answer():
    server = Recorder()
    answers = answers_of(server, pause=0.1)
    assert 1 <= len(server.bodies) <= 3  # in 0.3 s
    assert len(answers.all_ok("recorder")) == len(server.bodies)


def test_open_loop_sends_every_scheduled_request():
    server = Recorder()
    answers = answers_of(server, rate=100)
    assert len(answers.all_ok("recorder")) == len(server.bodies) == len(list(http_load.poisson(100, 0.3)))


def test_arrivals_do_not_wait_for_answers():
    arrivals = len(list(http_load.poisson(40, 0.3)))
    server = Recorder(meeting=arrivals)  # answers once all have come
    assert len(answers_of(server, rate=40).all_ok("recorder")) == server.most_at_once == arrivals > 3


def test_latency_counts_from_the_scheduled_arrival(monkeypatch):
    """Three requests are due at once and share one connection."""
    monkeypatch.setattr(http_load, "MOST_CONNECTIONS", 1)
    monkeypatch.setattr(http_load, "poisson", lambda *_: iter([0.0, 0.0, 0.0]))
    with Recorder() as server:  # 10 ms an answer
        arguments = Namespace(port=server.port, path="/x", concurrency=1, seconds=0.1, pause=0.0, rate=1.0)
        answer = asyncio.run(http_load.client(arguments, [b"{}"]))
    assert server.most_at_once == 1
    assert [ms >= 10 * place for place, ms in enumerate(sorted(answer["latencies_ms"][200]), 1)] == [True] * 3
    assert answer["unanswered"] == 0


def test_poisson_arrivals_have_the_rate_and_its_spread():
    arrivals = list(http_load.poisson(50, 200))
    gaps = [late - early for early, late in pairwise(arrivals)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert arrivals == list(http_load.poisson(50, 200))


def test_percentile_of_sorted_values():
    values = [float(value) for value in range(1, 101)]
    assert [http_load.percentile(values, share) for share in (0, 0.5, 0.95, 0.99, 1)] == [1, 51, 96, 100, 100]
    assert http_load.percentile([], 0.5) == 0


@pytest.mark.parametrize("how", [{"concurrency": 2}, {"rate": 10.0}])
def test_load_without_a_server_names_the_port(how):
    (port,) = subprocesses.free_ports(1)
    with pytest.raises(ServingError, match=rf"failed on port {port}: .*Error"):
        http_load.load(port, "/x", [{}], 0.1, **how)


def test_peak_memory_counts_descendants_and_remembers():
    script = "import time; block = bytearray(64 << 20); del block; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        try:
            child.stdout.readline()
            own = subprocesses.peak_memory(os.getpid()) - subprocesses.peak_memory(os.getpid(), children_only=True)
            assert subprocesses.peak_memory(child.pid) >= 64
            assert subprocesses.peak_memory(os.getpid(), children_only=True) >= 64
            assert own >= psutil.Process().memory_info().rss / 2**20 - 1
        finally:
            child.kill()


def test_process_that_ends_early_is_named_with_its_last_line(tmp_path):
    log = tmp_path / "log.txt"
    (port,) = subprocesses.free_ports(1)
    with (
        subprocesses.running("build_scripts.benchmarks.http_load", ["--nonsense"], log) as process,
        pytest.raises(ServingError, match=r"ended with code 2: .*required"),
    ):
        subprocesses.wait_until(lambda: subprocesses.listens(port), process.poll, log, 30)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_flask_services_agree_with_hugging_face(subject, tmp_path):
    pytest.importorskip("flask", reason="the group bench is not installed")
    pytest.importorskip("onnxruntime", reason="the group bench is not installed")
    from build_scripts.benchmarks import flask_service

    checkpoint = subject("bert").checkpoint
    flask_service.export_onnx(checkpoint, tmp_path / "model.onnx")
    assert not checkpoint.model.training
    eager, onnx = flask_service.eager(checkpoint), flask_service.onnx_runtime(tmp_path / "model.onnx")
    expected = []
    with torch.inference_mode():
        for text in VARIED:
            inputs = checkpoint.tokenizer(text, truncation=True, max_length=checkpoint.max_length, return_tensors="pt")
            expected.append(subject("bert").model(**inputs).logits[0].softmax(-1))
    calls = [(eager, True), (eager, False), (onnx, False)]
    if importlib.util.find_spec("openvino"):
        calls.append((flask_service.openvino(tmp_path / "model.onnx", precision="f32"), False))
    for logits, padded in calls:
        client = flask_service.application(checkpoint, logits, padded).test_client()
        answers = [client.post("/classify", json={"text": text}).get_json() for text in VARIED]
        found = torch.tensor([answer["probabilities"] for answer in answers])
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
        assert [answer["class_id"] for answer in answers] == found.argmax(1).tolist()
