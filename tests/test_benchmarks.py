"""The benchmarks count, convert and load as they say. What they measure is no test's business."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from build_scripts import bench, bench_report, corpus, perf, perf_analyzer, processes, report, timing
from build_scripts.architectures import bert_parts
from build_scripts.flops import classifier_flops
from build_scripts.packed_bert import PackedBert
from build_scripts.packed_linear import PackedLinear
from build_scripts.perf_analyzer import Counters, Level
from build_scripts.settings import Address, ServingError
from tests.servers import embedded
from tests.texts import VARIED

# What perf_analyzer 2.51.0 wrote for one level, with --verbose-csv.
VERBOSE_CSV = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,\
Avg latency,request/response,response wait
4,272.588,4,7542,1,57,6103,936,2,10382,16990,19994,116989,14648,6,14620
"""


@given(st.floats(1e-4, 1e6))
def test_numbers_have_three_significant_digits(value):
    text = report.number(value)
    assert "e" not in text
    assert float(text) == (round(value) if value >= 100 else float(f"{value:.3g}"))
    assert report.number(-value) == f"-{text}"


def test_known_numbers_and_ratios():
    assert [report.number(value) for value in (0, 0.01234, 9.996, 99.96, 1240.4)] == [
        "0",
        "0.0123",
        "10.0",
        "100",
        "1240",
    ]
    assert [report.ratio(value, 4.0) for value in (4, 50, 4000)] == ["1.0×", "12.5×", "1000×"]


def test_a_table_is_rectangular_and_its_cells_hold_no_bars():
    lines = report.table(["name", "ms"], [["a|b", "1"], ["c", "2"]]).splitlines()
    assert [line.count("|") for line in lines] == [3] * 4
    assert lines[1] == "| --- | ---: |"
    with pytest.raises(ValueError, match="3 cells, the header 2"):
        report.table(["name", "ms"], [["a", "1", "2"]])


def test_charts_are_written_as_png_and_svg(tmp_path):
    pytest.importorskip("matplotlib", reason="the group bench is not installed")
    report.latency_chart(tmp_path / "sweep", [report.Sweep("short", [1, 2], [10, 19], [5, 6], [9, 12])] * 3)
    report.bar_chart(
        tmp_path / "bars", ["first", "second"], ["grey", "blue"], [report.Bars("b", "ms", [1, 2], ["x", "y"])]
    )
    for name in ("sweep", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def triton_statistics(batches: list[list[int]], queue_ns: int, infer_ns: int) -> dict:
    """What Triton would answer after these executions, each a list of its requests' batch sizes."""
    requests = sum(map(len, batches))
    stages = {"queue": queue_ns, "compute_input": 10, "compute_infer": infer_ns, "compute_output": 20}
    sums = {name: {"count": requests, "ns": requests * ns} for name, ns in stages.items()}
    sums["success"] = {"count": requests, "ns": requests * sum(stages.values())}
    inferences = sum(map(sum, batches))
    entry = {"inference_count": str(inferences), "execution_count": len(batches), "inference_stats": sums}
    return {"model_stats": [entry]}


def test_counters_give_means_a_request_and_inferences_an_execution():
    early = perf_analyzer.read_counters(triton_statistics([[1], [1, 1]], queue_ns=5, infer_ns=7))
    late = perf_analyzer.read_counters(
        {
            "model_stats": triton_statistics([[1], [1, 1]], 5, 7)["model_stats"]
            + triton_statistics([[1, 1, 1], [1, 2]], queue_ns=3_000_000, infer_ns=4_000_000)["model_stats"]
        }
    )
    spent = late - early
    assert (spent.requests, spent.inferences, spent.executions) == (5, 6, 2)
    assert (spent.queue_ms, spent.compute_ms) == (3.0, pytest.approx(4.00003))
    assert spent.batch_fill == 3.0


def test_no_requests_are_no_division_by_zero():
    nothing = Counters(0, 0, 0, 0, 0)
    assert (nothing.queue_ms, nothing.compute_ms, nothing.batch_fill) == (0, 0, 0)


def test_perf_analyzers_report_is_read_in_milliseconds():
    assert perf_analyzer.read_report(VERBOSE_CSV) == {
        "throughput": 272.588,
        "mean": 14.648,
        "p50": 10.382,
        "p90": 16.99,
        "p95": 19.994,
        "p99": 116.989,
    }


def level(p50: float = 9.0) -> Level:
    return Level(
        concurrency=4,
        throughput=400.0,
        spread=(390.0, 410.0),
        mean=10.0,
        p50=p50,
        p90=12.0,
        p95=13.0,
        p99=20.0,
        tokenizer=Counters(10, 10, 8, queue_ns=5_000_000, compute_ns=6_000_000),
        classifier=Counters(10, 10, 4, queue_ns=15_000_000, compute_ns=55_000_000),
    )


def test_the_split_adds_up_to_the_clients_mean():
    one = level()
    assert one.queue == 2.0
    parts = (one.queue, one.tokenizer.compute_ms, one.classifier.compute_ms, one.rest)
    assert sum(parts) == pytest.approx(one.mean)
    latency, split = perf.tables([one])
    assert "| 4 | 400 | 390–410 | 9.00 | 12.0 | 13.0 | 20.0 |" in latency
    assert "| 4 | 10.0 | 2.00 | 0.600 | 5.50 | 1.90 | 1.25 | 2.50 |" in split


def test_windows_grow_with_what_a_round_of_requests_takes():
    assert perf.longest_round([], 1) == 0
    assert perf.longest_round([level(p50=250.0), level(p50=900.0)], 16) == 4000.0


def test_the_corpus_has_short_and_long_texts():
    texts = corpus.corpus()
    assert len(texts) == len(set(texts)) == 220
    found = {workload.name: workload for workload in corpus.workloads(lambda lines: [len(x.split()) for x in lines])}
    assert {name: len(workload.texts) for name, workload in found.items()} == {
        "short": 120,
        "lognormal": 200,
        "long": 30,
    }
    assert max(found["short"].tokens) < min(found["long"].tokens)
    for workload in found.values():
        assert workload.tokens == [len(text.split()) for text in workload.texts]
    again = corpus.workloads(lambda lines: [len(x.split()) for x in lines])
    assert [workload.texts for workload in again] == [workload.texts for workload in found.values()]


def test_chosen_lengths_are_lognormal_where_the_corpus_allows_it():
    tokens = list(range(1, 1000))
    logs = [math.log(tokens[index]) for index in corpus.lognormal_choice(tokens, 2000, seed=1)]
    assert statistics.mean(logs) == pytest.approx(corpus.LOG_MEAN, abs=0.1)
    assert statistics.stdev(logs) == pytest.approx(corpus.LOG_SIGMA, abs=0.1)


def test_padding_is_the_share_of_zeros_in_the_mask(subject):
    checkpoint = subject("bert").checkpoint
    mask = checkpoint.tokenize(VARIED)[1]
    workload = corpus.Workload("varied", VARIED, mask.sum(1).tolist())
    assert workload.padding(checkpoint.max_length) == pytest.approx((mask == 0).double().mean().item())


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("lengths", [[1], [7], [9, 9, 9], [100, 100]])
def test_operations_are_those_that_torch_counts(subject, monkeypatch, kind, lengths):
    # Equal lengths: the graph then computes no padding, and every product that torch sees is one that is needed.
    monkeypatch.setattr(PackedLinear, "pack", lambda self: None)  # torch does not count oneDNN's own operators
    parts = bert_parts(subject(kind).model)
    graph = PackedBert(parts, torch.float32)
    ids = torch.full((len(lengths), 128), 5)
    mask = (torch.arange(128) < torch.tensor(lengths)[:, None]).long()
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        graph(ids, mask)
    assert classifier_flops(parts, lengths) == counter.get_total_flops()


def test_a_mixed_batch_needs_the_operations_of_its_texts(subject):
    parts = bert_parts(subject("bert").model)
    assert classifier_flops(parts, [3, 50, 20]) == sum(classifier_flops(parts, [length]) for length in (3, 50, 20))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=64))
def test_equal_lengths_keep_texts_and_tokens(lengths):
    equal = bench.equal_lengths(lengths)
    assert (len(equal), sum(equal)) == (len(lengths), sum(lengths))
    assert max(equal) - min(equal) <= 1


def test_workloads_fit_the_checkpoint():
    assert sum(bench.workloads(512)["32 lognormal"]) == 935
    assert [len(lengths) for lengths in bench.workloads(512).values()] == [1, 1, 1, 8, 32]
    assert max(max(lengths) for lengths in bench.workloads(100).values()) == 100


def test_random_batches_have_the_asked_lengths(subject):
    checkpoint = subject("roberta").checkpoint
    ids, mask = bench.random_batch(checkpoint, [5, 2, 40])
    assert mask.sum(1).tolist() == [5, 2, 40]
    assert (ids[mask == 0] == checkpoint.tokenizer.pad_token_id).all()
    first, last = checkpoint.tokenizer("")["input_ids"]
    assert ids[:, 0].tolist() == [first] * 3
    assert ids[torch.arange(3), mask.sum(1) - 1].tolist() == [last] * 3


def test_variants_take_turns_and_a_slow_one_is_called_once(monkeypatch):
    monkeypatch.setattr(timing, "PAUSE_S", 0.0)
    calls = []
    variants = {
        "quick": lambda: calls.append("quick"),
        "other": lambda: calls.append("other"),
        "slow": lambda: (calls.append("slow"), time.sleep(0.06)),
    }
    times = timing.interleaved(variants, 0.05, "test")
    assert calls.count("slow") == len(times["slow"]) == 1
    assert len(times["quick"]) == timing.ROUNDS * timing.MOST_CALLS
    turns = [name for name, before in zip(calls[5:], calls[4:]) if name != before]
    assert turns == ["quick", "other"] * timing.ROUNDS


def measured(name: str, lengths: list[int], ms: dict[str, float], flops: int | None) -> bench_report.Measured:
    seconds = {variant: [value / 1e3, value / 1e3, 1.0] for variant, value in ms.items()}
    return bench_report.Measured(name, lengths, seconds, flops, flops)


def test_the_share_of_the_peak_is_speed_over_the_fastest_product():
    product = 2 * math.prod(bench_report.PEAK_SHAPE)
    hugging_face = dict.fromkeys(bench_report.HUGGING_FACE, 40.0)
    one = measured("a", [10], {"fp32": 10, "bf16": 5, "peak fp32": 20, "peak bf16": 5} | hugging_face, product // 4)
    two = measured("b", [10], {"fp32": 10, "bf16": 5, "peak fp32": 10, "peak bf16": 9} | hugging_face, None)
    peaks = {precision: bench_report.peak([one, two], precision) for precision in ("fp32", "bf16")}
    assert peaks == {"fp32": pytest.approx(product / 10e-3), "bf16": pytest.approx(product / 5e-3)}
    assert bench_report.shares(one, peaks)[2:] == ["1000", "107", "25%", "2000", "215", "25%"]
    assert bench_report.shares(two, peaks) == ["b", "–", "1000", "–", "–", "2000", "–", "–"]
    assert bench_report.times(one) == ["a", "10", "10.0", "5.00", "40.0 (4.0×)", "40.0 (4.0×)", "40.0 (8.0×)"]
    tables = [part.splitlines() for part in bench_report.sections([one, two], 512) if part.startswith("|")]
    assert len(tables) == 3
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


class Recorder(ThreadingHTTPServer):
    """Answers every POST after a moment; keeps the bodies, and how many were worked on at once."""

    def __init__(self, status: int = 200):
        self.bodies: list[str] = []
        self.at_once = self.most_at_once = self.connections = 0
        self.lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                recorder.connections += 1

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with recorder.lock:
                    recorder.bodies.append(body)
                    recorder.at_once += 1
                    recorder.most_at_once = max(recorder.most_at_once, recorder.at_once)
                time.sleep(0.01)
                with recorder.lock:
                    recorder.at_once -= 1
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


def load(tmp_path, server: Recorder, concurrency: int) -> subprocess.CompletedProcess:
    bodies = tmp_path / "bodies.json"
    bodies.write_text(json.dumps([{"text": "é"}, {"text": "b"}]), encoding="utf-8")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    command = [sys.executable, "-m", "build_scripts.http_load", "--port", str(server.server_port), "--path", "/x"]
    command += ["--bodies", str(bodies), "--concurrency", str(concurrency), "--seconds", "0.3"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_client_keeps_so_many_requests_in_flight(tmp_path):
    server = Recorder()
    answer = json.loads(load(tmp_path, server, concurrency=3).stdout)
    assert list(answer["latencies_ms"]) == ["200"]
    latencies = answer["latencies_ms"]["200"]
    assert len(latencies) == len(server.bodies) > 3
    assert answer["unanswered"] == 0
    assert (server.most_at_once, server.connections) == (3, 3)
    assert min(latencies) >= 10
    counts = Counter(json.loads(body)["text"] for body in server.bodies)
    assert abs(counts["é"] - counts["b"]) <= 1


def test_the_client_counts_refusals_apart(tmp_path):
    server = Recorder(status=503)
    answer = json.loads(load(tmp_path, server, concurrency=2).stdout)
    assert {status: len(ms) for status, ms in answer["latencies_ms"].items()} == {"503": len(server.bodies)}


def test_peak_memory_counts_descendants_and_remembers():
    script = "import time; block = bytearray(64 << 20); del block; print('ready', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        try:
            child.stdout.readline()
            own = processes.peak_memory(os.getpid()) - processes.peak_memory(os.getpid(), children_only=True)
            assert processes.peak_memory(child.pid) >= 64
            assert processes.peak_memory(os.getpid(), children_only=True) >= 64
            assert own >= psutil.Process().memory_info().rss / 2**20 - 1
        finally:
            child.kill()


def test_a_process_that_ends_early_is_named_with_its_last_words(tmp_path):
    log = tmp_path / "log.txt"
    (port,) = processes.free_ports(1)
    with (
        processes.running("build_scripts.http_load", ["--nonsense"], log) as process,
        pytest.raises(ServingError, match=r"ended with code 2: .*required"),
    ):
        processes.wait_until(lambda: processes.listens(port), process.poll, log, 30)


@pytest.mark.usefixtures("one_thread")
def test_the_services_that_are_compared_answer_alike(subject, tmp_path):
    pytest.importorskip("flask", reason="the group bench is not installed")
    pytest.importorskip("onnxruntime", reason="the group bench is not installed")
    from build_scripts import flask_service

    checkpoint = subject("bert").checkpoint
    flask_service.export_onnx(checkpoint, tmp_path / "model.onnx")
    assert not checkpoint.model.training
    eager, onnx = flask_service.eager(checkpoint), flask_service.onnx_runtime(tmp_path / "model.onnx")
    expected = []
    with torch.inference_mode():
        for text in VARIED:
            inputs = checkpoint.tokenizer(text, truncation=True, max_length=checkpoint.max_length, return_tensors="pt")
            expected.append(subject("bert").model(**inputs).logits[0].softmax(-1))
    for logits, padded in ((eager, True), (eager, False), (onnx, False)):
        client = flask_service.application(checkpoint, logits, padded).test_client()
        answers = [client.post("/classify", json={"text": text}).get_json() for text in VARIED]
        found = torch.tensor([answer["probabilities"] for answer in answers])
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
        assert [answer["class_id"] for answer in answers] == found.argmax(1).tolist()


def test_a_disagreeing_service_stops_the_comparison():
    pytest.importorskip("flask", reason="the group bench is not installed")
    from build_scripts import compare
    from build_scripts.services import Service

    def service(name: str, answers: dict[str, list[float]]) -> Service:
        one = Service(name, 0, 0, "/", dict, lambda row: max(range(len(row)), key=row.__getitem__), lambda row: row)
        object.__setattr__(one, "ask", lambda texts: [answers[text] for text in texts])
        return one

    first = service("first", {"clear": [0.9, 0.1], "tie": [0.50001, 0.49999]})
    rounded = service("rounded", {"clear": [0.9, 0.1], "tie": [0.49999, 0.50001]})
    wrong = service("wrong", {"clear": [0.1, 0.9], "tie": [0.50001, 0.49999]})
    assert compare.agreements([first, rounded, wrong], ["clear", "tie"]) == ["2 of 2", "1 of 2", "1 of 2"]
    with pytest.raises(ServingError, match=r"wrong answers 1 where first answers 0, for 'clear'"):
        compare.agreements([first, wrong, rounded], ["clear", "tie"])


def test_perf_analyzer_measures_a_real_server(default_server):
    address: Address = default_server.address
    found = perf_analyzer.measure(address, ["one text", 'another "text" é 中文'], concurrency=2, seconds=0.9)
    assert found.throughput > 0
    assert found.spread[0] <= found.throughput <= found.spread[1] * 1.01
    assert 0 < found.p50 <= found.p90 <= found.p95 <= found.p99
    assert found.classifier.requests >= found.throughput * 0.9 * 0.9
    assert 1 <= found.classifier.batch_fill <= 3


def test_requests_that_fail_are_an_error(default_server):
    with pytest.raises(ServingError, match="perf_analyzer ended with code"):
        perf_analyzer.measure(default_server.address, ["x" * (2 << 20)], concurrency=1, seconds=0.3)


@pytest.mark.skipif(not embedded(), reason="strikes the classifier's process")
def test_a_short_soak_finds_nothing_wrong(capfd):
    """Half a minute of what `make soak` does for ten; the report is read by people, its verdict here."""
    from build_scripts.soak import soak

    good = soak("", 30.0)
    said = capfd.readouterr().out
    assert good, said
    rows = dict(line.strip("| ").split(" | ") for line in said.splitlines() if line.count(" | ") == 1)
    assert int(rows["valid, answered"]) > 1000
    assert int(rows["hostile, refused"]) > 50
    assert [name for name in rows if name.startswith("tokenizer SIG")]
