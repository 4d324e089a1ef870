"""The loads of `make compare` and `make soak`, and the services they are sent to."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import psutil
import pytest
import torch

from build_scripts.benchmarks import http_load, subprocesses
from build_scripts.core.errors import ServingError
from tests.support.recorder import Recorder
from tests.support.servers import embedded
from tests.support.texts import VARIED


def answers_of(server: Recorder, concurrency: int, **options: float) -> http_load.Answers:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    bodies = [{"text": "é"}, {"text": "b"}]
    try:
        return http_load.load(server.server_port, "/x", bodies, concurrency, seconds=0.3, **options)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_client_keeps_so_many_requests_in_flight():
    server = Recorder(meeting=3)
    answers = answers_of(server, concurrency=3)
    assert list(answers.latencies_ms) == [200]
    latencies = answers.latencies_ms[200]
    assert len(latencies) == len(server.bodies) > 3
    assert answers.unanswered == 0
    assert answers.rate == len(latencies) / answers.seconds
    assert (server.most_at_once, server.connections) == (3, 3)
    assert latencies == sorted(latencies)
    assert latencies[0] >= 10
    counts = Counter(json.loads(body)["text"] for body in server.bodies)
    assert abs(counts["é"] - counts["b"]) <= 1


def test_the_client_counts_refusals_apart():
    server = Recorder(status=503)
    answers = answers_of(server, concurrency=2)
    assert {status: len(ms) for status, ms in answers.latencies_ms.items()} == {503: len(server.bodies)}
    assert answers.rate == 0


def test_a_rate_is_kept_to():
    server = Recorder()
    answers = answers_of(server, concurrency=8, rate=100)
    assert 5 < len(server.bodies) <= (0.3 + http_load.LATE_S) * 100 + 1
    assert len(answers.latencies_ms[200]) == len(server.bodies)


def test_turns_are_spread_evenly_and_those_missed_for_long_are_not_made_up_for(monkeypatch):
    now, late = [100.0], http_load.LATE_S
    monkeypatch.setattr(http_load, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run = http_load.Run(0, "/x", [b"{}"], rate=1 / late)
    waits = [run.seconds_to_turn() for _ in range(4)]
    assert waits == pytest.approx([0, 0, late, 2 * late], abs=1e-9)
    now[0] += 3.5 * late
    assert [run.seconds_to_turn() for _ in range(2)] == pytest.approx([0, late / 2], abs=1e-9)
    now[0] += 60
    assert [run.seconds_to_turn() for _ in range(3)] == pytest.approx([0, 0, late], abs=1e-9)


def test_a_load_on_nobody_is_an_error_that_names_the_port():
    (port,) = subprocesses.free_ports(1)
    with pytest.raises(ServingError, match=rf"failed on port {port}: .*Error"):
        http_load.load(port, "/x", [{}], concurrency=1, seconds=0.1)


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


def test_a_process_that_ends_early_is_named_with_its_last_words(tmp_path):
    log = tmp_path / "log.txt"
    (port,) = subprocesses.free_ports(1)
    with (
        subprocesses.running("build_scripts.benchmarks.http_load", ["--nonsense"], log) as process,
        pytest.raises(ServingError, match=r"ended with code 2: .*required"),
    ):
        subprocesses.wait_until(lambda: subprocesses.listens(port), process.poll, log, 30)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_services_that_are_compared_answer_alike(subject, tmp_path):
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


def test_a_disagreeing_service_stops_the_comparison():
    pytest.importorskip("flask", reason="the group bench is not installed")
    from build_scripts.benchmarks import compare
    from build_scripts.benchmarks.contenders import Service

    def service(name: str, answers: dict[str, list[float]]) -> Service:
        ids = [lambda row: max(range(len(row)), key=row.__getitem__), lambda row: row]
        one = Service(name, 0, 0, "/", dict, *ids, exact=name != "int8")
        object.__setattr__(one, "ask", lambda texts: [answers[text] for text in texts])
        return one

    first = service("first", {"clear": [0.9, 0.1], "tie": [0.50001, 0.49999]})
    rounded = service("rounded", {"clear": [0.9, 0.1], "tie": [0.49999, 0.50001]})
    answers = {"clear": [0.1, 0.9], "tie": [0.50001, 0.49999]}
    wrong, int8 = service("wrong", answers), service("int8", answers)
    assert compare.agreements([first, rounded, int8], ["clear", "tie"]) == ["0 of 2", "1 of 2", "1 of 2"]
    with pytest.raises(ServingError, match=r"wrong answers 1 where first answers 0, for 'clear'"):
        compare.agreements([first, wrong, rounded], ["clear", "tie"])


@pytest.mark.server
@pytest.mark.skipif(not embedded(), reason="kills the classifier's process")
def test_a_short_soak_finds_nothing_wrong(default_repository, capfd, monkeypatch, tmp_path):
    """Half a minute of what `make soak` does for ten; the report is read by people, its verdict here."""
    from tests.soak.soak import soak

    monkeypatch.setattr("tests.soak.soak.BUILD", tmp_path)
    shutil.copytree(default_repository, tmp_path / "soak" / "repository", symlinks=True)  # it need not build again
    good = soak("", None, 30.0)
    said = capfd.readouterr().out
    assert good, said
    rows = dict(line.strip("| ").split(" | ") for line in said.splitlines() if line.count(" | ") == 1)
    assert int(re.search(r"held (\d+) texts", said)[1]) > int(rows["valid, answered"]) > 1000
    assert int(rows["hostile, refused"]) > 50
    assert [name for name in rows if name.startswith("tokenizer SIG")]
