"""`make bench`: batches, operation counts and tables. Speed is not tested."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from build_scripts.benchmarks import bench, bench_report
from build_scripts.benchmarks.bench_report import Workload
from build_scripts.benchmarks.flops import classifier_flops
from build_scripts.benchmarks.runtimes import PEAK_SHAPE
from build_scripts.convert.families import encoder_parts
from build_scripts.graph.packed_encoder import PackedEncoder
from build_scripts.graph.packed_linear import PackedLinear


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("lengths", [[1], [7], [8, 8, 8], [100, 100]])
def test_flops_match_torchs_counter(subject, monkeypatch, kind, lengths):
    # Equal lengths whose sum needs no rounding: the graph computes no padding, so torch counts useful products only.
    monkeypatch.setattr(PackedLinear, "pack", lambda self: None)  # torch does not count oneDNN's own operators
    parts = encoder_parts(subject(kind).model)
    graph = PackedEncoder(parts, torch.float32)
    ids = torch.full((len(lengths), 128), 5)
    mask = (torch.arange(128) < torch.tensor(lengths)[:, None]).long()
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        graph(ids, mask)
    assert classifier_flops(parts, lengths) == counter.get_total_flops()


def test_flops_of_a_mixed_batch_are_the_sum_of_its_texts(subject):
    parts = encoder_parts(subject("bert").model)
    assert classifier_flops(parts, [3, 50, 20]) == sum(classifier_flops(parts, [length]) for length in (3, 50, 20))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=64))
def test_equal_lengths_keep_texts_and_tokens(lengths):
    equal = bench.equal_lengths(lengths)
    assert (len(equal), sum(equal)) == (len(lengths), sum(lengths))
    assert max(equal) - min(equal) <= 1


def test_workloads_fit_the_checkpoint():
    assert sum(bench.workloads(512)["32 lognormal"]) == 935
    assert [len(lengths) for lengths in bench.workloads(512).values()] == [1, 1, 1, 1, 8, 32]
    assert max(max(lengths) for lengths in bench.workloads(100).values()) == 100


def test_random_batches_have_the_asked_lengths(subject):
    checkpoint = subject("roberta").checkpoint
    ids, mask = bench.random_batch(checkpoint, [5, 2, 40])
    assert mask.sum(1).tolist() == [5, 2, 40]
    assert (ids[mask == 0] == checkpoint.tokenizer.pad_token_id).all()
    first, last = checkpoint.tokenizer("")["input_ids"]
    assert ids[:, 0].tolist() == [first] * 3
    assert ids[torch.arange(3), mask.sum(1) - 1].tolist() == [last] * 3


SECONDS = {
    "ONNX Runtime": {"a": [0.04], "b": [0.02]},
    "HF trimmed": {"a": [0.08], "b": [0.03]},
    "fp32": {"a": [0.01, 0.01, 1.0], "b": [0.01], "b, equal": [0.008]},
    "fp16": {"a": [0.005], "b": [0.02], "b, equal": [0.02]},
    "peak fp32": {"a": [0.02, 0.03], "b": [0.01, 0.02]},
}


def tables(flops: int | None) -> list[list[str]]:
    workloads = [Workload("a", [10], flops, flops), Workload("b", [4, 6], flops, flops)]
    parts = bench_report.sections(workloads, SECONDS, ["fp32", "fp16"])
    return [part.splitlines() for part in parts if part.startswith("|")]


def test_report_has_times_shares_and_evenness():
    product = 2 * math.prod(PEAK_SHAPE)
    time, share, evenness = tables(product // 4)
    assert time[0] == "| batch | tokens | ONNX Runtime ms | HF trimmed ms | fp32 ms | fp16 ms |"
    assert time[2] == "| a | 10 | 40.0 | 80.0 (2.00) | 10.0 (0.25) | 5.00 (0.12) |"
    # The peak is the fastest product; fp16 weights are multiplied in fp32.
    assert share[2] == "| a | 1.07 | 1000 | 25% | 2000 | 50% |"
    assert evenness[2:] == ["| b | 1.25× | 1.00× | 1.00× |"]


def test_traced_graph_has_no_share_of_the_peak():
    assert [table[2] for table in tables(None)][1:] == ["| b | 1.25× | 1.00× | – |"]
