"""`make compare`: what is sent beside what, and how it is told. Speed is not tested."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from build_scripts.benchmarks import mixed_lengths
from build_scripts.benchmarks.contenders import Service
from build_scripts.benchmarks.mixed_lengths import ALONE, Traffic, Waiting
from build_scripts.core.errors import ServingError
from tests.support.recorder import Recorder


@contextlib.contextmanager
def recorded(status: int = 200) -> Iterator[Recorder]:
    server = Recorder(status)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def service(server: Recorder, **options) -> Service:
    port = server.server_address[1]
    return Service("one", port, 0, "/", lambda text: {"text": [text]}, lambda answer: 0, lambda answer: [], **options)


LONG = [f"long {index}" for index in range(64)]


@pytest.mark.parametrize(("traffic", "texts"), [(Traffic(3), 1), (Traffic(1, 5), 5)])
def test_the_short_client_is_alone_with_its_texts_beside_the_long_ones(monkeypatch, traffic, texts):
    monkeypatch.setattr(mixed_lengths, "LEAD_S", 0.2)
    seen = Waiting()
    with recorded() as server:
        mixed_lengths.load_once(
            service(server, body_of_many=lambda many: {"text": many}), traffic, ["short"], LONG, 0.3, seen
        )
        bodies = [json.loads(body)["text"] for body in server.bodies]
    assert traffic.connections <= server.most_at_once <= traffic.connections + 1
    assert bodies.count(["short"]) >= 3
    long = [body for body in bodies if body != ["short"]]
    assert {len(body) for body in long} == {texts}
    assert all(0 < p50 <= p95 for p50, p95 in zip(seen.p50_ms, seen.p95_ms, strict=True))
    assert seen.long_texts[0] > 0


def test_alone_nothing_else_is_sent(monkeypatch):
    seen = Waiting()
    with recorded() as server:
        mixed_lengths.load_once(service(server), ALONE, ["short"], LONG, 0.1, seen)
        assert {json.loads(body)["text"][0] for body in server.bodies} == {"short"}
    assert seen.long_texts == [0]


def test_a_service_that_fails_is_named_with_the_traffic_that_it_failed_in():
    with recorded(503) as server, pytest.raises(ServingError, match=r"one failed beside 2 × 1 long: \{503: "):
        mixed_lengths.load_once(service(server), Traffic(2), ["short"], LONG, 0.1, Waiting())


def test_only_who_takes_many_texts_a_request_is_sent_many_and_a_slow_one_is_left_out():
    server = type("Port", (), {"server_address": ("", 0)})
    plain, many, slow = service(server), service(server, body_of_many=list), service(server, slow=True)
    assert [mixed_lengths.can_be_sent(one, Traffic(1, 64)) for one in (plain, many, slow)] == [False, True, False]
    assert [mixed_lengths.can_be_sent(one, Traffic(4)) for one in (plain, many, slow)] == [True, True, False]


def test_long_texts_are_long_and_differ():
    texts = mixed_lengths.long_texts(["one two three", "four five"] * 400)
    assert {len(text.split()) for text in texts} == {mixed_lengths.LONG_WORDS}
    assert len(texts) == 64
    assert len(set(mixed_lengths.long_texts([str(number) for number in range(5000)]))) == 64


def test_what_was_not_measured_is_a_dash_and_ratios_are_to_the_first_that_was():
    from build_scripts.benchmarks import compare_report

    values, notes = compare_report.column([None, [10, 30, 20], [5]], faster=lambda value, first: value / first)
    assert values == [0, 20, 5]
    assert notes == ["–", "20.0 (1.0×)", "5.00 (0.2×)"]
    table = compare_report.beside_table(
        ["slow", "first", "ours"],
        {
            ALONE: {"first": Waiting([2], [3], [0]), "ours": Waiting([1], [2], [0])},
            Traffic(1, 64): {"ours": Waiting([4, 5, 6], [7, 8, 9], [30, 10, 20])},
        },
    )
    assert (
        table.splitlines()[0] == "| service | alone: p50 / p95 ms | beside 1 × 64 long: p50 / p95 ms | long texts/s |"
    )
    assert table.splitlines()[2:] == [
        "| first | 2.00 / 3.00 | – | – |",
        "| ours | 1.00 / 2.00 | 5.00 / 8.00 | 20.0 |",
    ]


def test_int8_is_the_same_graph_with_smaller_weights(subject, tmp_path):
    pytest.importorskip("onnxruntime", reason="the group bench is not installed")
    import onnx
    import torch

    from build_scripts.benchmarks import flask_service

    flask_service.export_onnx(subject("bert").checkpoint, tmp_path / "model.onnx")
    flask_service.quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    operators = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "DynamicQuantizeLinear" in operators
    inputs = {name: torch.ones(1, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    exact, rounded = (flask_service.onnx_runtime(tmp_path / name)(inputs) for name in ("model.onnx", "int8.onnx"))
    assert 0 < (exact - rounded).abs().max() < 0.5
