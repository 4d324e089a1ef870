"""`make compare`: loads and tables. Speed is not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from build_scripts.benchmarks import compare_report, interactive, mixed_lengths
from build_scripts.benchmarks.http_load import Answers
from build_scripts.benchmarks.interactive import LOADS, Interactive, Load
from build_scripts.benchmarks.mixed_lengths import ALONE, Traffic, Waiting
from build_scripts.benchmarks.services import Service
from build_scripts.core.errors import ServingError
from tests.support.recorder import Recorder


def service(server: Recorder, **options) -> Service:
    return Service(
        "one", server.port, 0, "/", lambda text: {"text": [text]}, lambda answer: 0, lambda answer: [], **options
    )


LONG = [f"long {index}" for index in range(64)]


@pytest.mark.parametrize(("traffic", "texts"), [(Traffic(3), 1), (Traffic(1, 5), 5)])
def test_short_texts_are_sent_beside_long_ones(monkeypatch, traffic, texts):
    monkeypatch.setattr(mixed_lengths, "LEAD_S", 0.2)
    seen = Waiting()
    with Recorder() as server:
        mixed_lengths.load_once(
            service(server, body_of_many=lambda many: {"text": many}), traffic, ["short"], LONG, 0.3, seen
        )
        bodies = [json.loads(body)["text"] for body in server.bodies]
    assert server.most_at_once <= traffic.connections + 1
    assert ["short"] in bodies
    long = [body for body in bodies if body != ["short"]]
    assert {len(body) for body in long} == {texts}
    assert all(0 < p50 <= p95 for p50, p95 in zip(seen.p50_ms, seen.p95_ms, strict=True))
    assert seen.long_texts[0] > 0


def test_alone_sends_short_texts_only(monkeypatch):
    seen = Waiting()
    with Recorder() as server:
        mixed_lengths.load_once(service(server), ALONE, ["short"], LONG, 0.1, seen)
        assert {json.loads(body)["text"][0] for body in server.bodies} == {"short"}
    assert seen.long_texts == [0]


def test_failing_service_is_named_with_its_traffic():
    with (
        Recorder(503) as server,
        pytest.raises(ServingError, match=r"one beside 2 × 1 long failed under load: \{503: "),
    ):
        mixed_lengths.load_once(service(server), Traffic(2), ["short"], LONG, 0.1, Waiting())


def test_slow_and_single_text_services_are_left_out():
    server = SimpleNamespace(port=0)
    plain, many, slow = service(server), service(server, body_of_many=list), service(server, slow=True)
    assert [mixed_lengths.takes(one, Traffic(1, 64)) for one in (plain, many, slow)] == [False, True, False]
    assert [mixed_lengths.takes(one, Traffic(4)) for one in (plain, many, slow)] == [True, True, False]


def test_long_texts_differ():
    texts = mixed_lengths.long_texts(["one two three", "four five"] * 400)
    assert {len(text.split()) for text in texts} == {mixed_lengths.LONG_WORDS}
    assert len(texts) == 64
    assert len(set(mixed_lengths.long_texts([str(number) for number in range(5000)]))) == 64


def test_tables_have_dashes_for_what_was_not_measured():
    values, notes = compare_report.column([None, [10, 30, 20], [5]], faster=lambda value, first: value / first)
    assert values == [0, 20, 5]
    assert notes == ["–", "20.0 (1.0×)", "5.00 (0.2×)"]
    table = compare_report.mixed_table(
        ["first", "ours"],
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


def test_quantized_graph_is_close_to_the_exact_one(subject, tmp_path):
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


def test_interactive_load_pauses_or_arrives_at_a_share_of_the_capacity(monkeypatch):
    sent = []

    def load(self, texts, seconds, **how):
        sent.append((seconds, how))
        return Answers(1.0, {200: [2.0, 1.0]}, 0)

    monkeypatch.setattr(Service, "load", load)
    one = service(SimpleNamespace(port=0))
    found = interactive.measure([one], ["a"], {"one": 200.0}, "one", 2, 0.8)
    assert sent[: len(LOADS)] == [
        (0.8, {"pause": 0.01, "rate": 0.0}),
        (1.0, {"pause": 0.1, "rate": 0.0}),
        (5.0, {"pause": 0.5, "rate": 0.0}),
        (0.8, {"pause": 0.0, "rate": 20.0}),
        (0.8, {"pause": 0.0, "rate": 100.0}),
        (0.8, {"pause": 0.0, "rate": 160.0}),
    ]
    assert sent[len(LOADS) :] == sent[: len(LOADS)]
    assert found.latencies == {load: {"one": [1.0, 1.0, 2.0, 2.0]} for load in LOADS}


def test_service_gets_no_arrivals_beyond_its_capacity(monkeypatch):
    monkeypatch.setattr(Service, "load", lambda *_, **__: Answers(1.0, {200: [1.0]}, 0))
    services = [service(SimpleNamespace(port=0)), replace(service(SimpleNamespace(port=0)), name="weak")]
    found = interactive.measure(services, ["a"], {"one": 100.0, "weak": 40.0}, "one", 1, 0.1)
    assert [str(load) for load in LOADS if "weak" not in found.latencies[load]] == [
        "50% of capacity",
        "80% of capacity",
    ]
    assert all("one" in latencies for latencies in found.latencies.values())


def test_interactive_table_and_panels():
    latencies = {load: {"one": [1.0, 2.0, 30.0]} for load in LOADS}
    latencies[Load(share=0.8)] = {}
    found = Interactive(100.0, latencies)
    _, table = interactive.table(found, ["one"])
    assert "| pause of 10 ms |" in table
    assert "| 50% of capacity (50.0/s) |" in table
    assert table.splitlines()[2] == "| one |" + " 2.00 / 30.0 |" * 5 + " – |"
    panels = interactive.panels(found, ["one"])
    assert [panel.values for panel in panels] == [[30.0]] * 5 + [[0.0]]


def test_disagreeing_service_stops_the_comparison():
    pytest.importorskip("flask", reason="the group bench is not installed")
    from build_scripts.benchmarks import compare

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
