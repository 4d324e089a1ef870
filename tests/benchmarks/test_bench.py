"""`make bench` counts and times as it says. What it measures is no test's business."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from build_scripts.benchmarks import bench, bench_report, timing
from build_scripts.benchmarks.flops import classifier_flops
from build_scripts.convert.architectures import bert_parts
from build_scripts.graph.packed_bert import PackedBert
from build_scripts.graph.packed_linear import PackedLinear


@pytest.mark.parametrize("kind", ["bert", "electra", "distilbert"])
@pytest.mark.parametrize("lengths", [[1], [7], [8, 8, 8], [100, 100]])
def test_operations_are_those_that_torch_counts(subject, monkeypatch, kind, lengths):
    # Equal lengths whose sum is not rounded up: no padding is computed, and all products that torch sees are needed.
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
