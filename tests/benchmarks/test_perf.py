"""`make perf`: counters, conversions and tables. Speed is not tested."""

from __future__ import annotations

import math
import statistics

import pytest

from build_scripts.__main__ import COMMANDS
from build_scripts.benchmarks import corpus, perf, perf_analyzer
from build_scripts.benchmarks.perf_analyzer import Counters, Level
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address, BuildOptions
from build_scripts.serving.keep.run_state import RunState
from tests.support.texts import VARIED

# Output of perf_analyzer 2.51.0 for one level, with --verbose-csv.
VERBOSE_CSV = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,\
Avg latency,request/response,response wait
4,272.588,4,7542,1,57,6103,936,2,10382,16990,19994,116989,14648,6,14620
"""


def triton_statistics(batches: list[list[int]], queue_ns: int, infer_ns: int) -> dict:
    """Triton's answer after these executions, each a list of its requests' batch sizes."""
    requests = sum(map(len, batches))
    stages = {"queue": queue_ns, "compute_input": 10, "compute_infer": infer_ns, "compute_output": 20}
    sums = {name: {"count": requests, "ns": requests * ns} for name, ns in stages.items()}
    sums["success"] = {"count": requests, "ns": requests * sum(stages.values())}
    inferences = sum(map(sum, batches))
    entry = {"inference_count": str(inferences), "execution_count": len(batches), "inference_stats": sums}
    return {"model_stats": [entry]}


def test_counters_give_means_and_batch_fill():
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


def test_counters_without_requests_are_zero():
    nothing = Counters(0, 0, 0, 0, 0)
    assert (nothing.queue_ms, nothing.compute_ms, nothing.batch_fill) == (0, 0, 0)


def test_a_started_server_gets_every_option_of_the_build(tmp_path):
    texts = tmp_path / "texts.tsv"
    texts.write_text("a text\tlabel\n", encoding="utf-8")
    options = BuildOptions(
        "./mine", 64, "fp32", texts, tmp_path, tokenizer=tmp_path, calibrate=texts, text_column="sentence"
    )
    address = Address("127.0.0.1", 9000, 9001, 9002)
    read = COMMANDS["serve"].arguments("", perf.serve_arguments(options, address))
    assert (read["options"], read["address"], read["name"]) == (options, address, "")


def test_reads_perf_analyzers_report_in_milliseconds():
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


def test_parts_add_up_to_the_mean():
    one = level()
    assert one.queue == 2.0
    parts = (one.queue, one.tokenizer.compute_ms, one.classifier.compute_ms, one.rest)
    assert sum(parts) == pytest.approx(one.mean)
    latency, split = perf.tables([one])
    assert "| 4 | 400 | 390–410 | 9.00 | 12.0 | 13.0 | 20.0 |" in latency
    assert "| 4 | 10.0 | 2.00 | 0.600 | 5.50 | 1.90 | 1.25 | 2.50 |" in split


def test_windows_grow_with_latency():
    assert perf.longest_round([], 1) == 0
    assert perf.longest_round([level(p50=250.0), level(p50=900.0)], 16) == 4000.0


def test_corpus_has_short_and_long_texts():
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


def test_chosen_lengths_are_lognormal():
    tokens = list(range(1, 1000))
    logs = [math.log(tokens[index]) for index in corpus.lognormal_choice(tokens, 2000, seed=1)]
    assert statistics.mean(logs) == pytest.approx(corpus.LOG_MEAN, abs=0.1)
    assert statistics.stdev(logs) == pytest.approx(corpus.LOG_SIGMA, abs=0.1)


def test_padding_is_the_share_of_zeros_in_the_mask(subject):
    checkpoint = subject("bert").checkpoint
    mask = checkpoint.tokenize(VARIED)[1]
    workload = corpus.Workload("varied", VARIED, mask.sum(1).tolist())
    assert workload.padding(checkpoint.max_length) == pytest.approx((mask == 0).double().mean().item())


def test_perf_analyzer_measures_a_real_server(default_server):
    address: Address = default_server.address
    found = perf_analyzer.measure(address, ["one text", 'another "text" é 中文'], concurrency=2, seconds=0.9)
    assert found.throughput > 0
    assert found.spread[0] <= found.throughput <= found.spread[1] * 1.01
    assert 0 < found.p50 <= found.p90 <= found.p95 <= found.p99
    assert found.classifier.requests > 0
    assert 1 <= found.classifier.batch_fill <= 3


def test_failing_requests_are_an_error(default_server):
    with pytest.raises(ServingError, match="perf_analyzer ended with code"):
        perf_analyzer.measure(default_server.address, ["x" * (2 << 20)], concurrency=1, seconds=0.3)


def test_removed_repository_of_a_running_server_is_one_line(tmp_path):
    """As `make clean` does to a server that runs."""
    state = RunState(0, "", "", str(tmp_path / "gone"), "", "", {}, "")
    with pytest.raises(ServingError, match=r"gone holds no release any more, though a server runs from it; restart"):
        perf.served_release(state)
