"""What is read from Triton's metrics page."""

from __future__ import annotations

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.serving.keep.counters import parse, read_counters
from build_scripts.serving.keep.overload import WINDOW_S, Overload

PAGE = """# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
nv_inference_request_success{model="text_classifier",version="1"} 62
nv_inference_request_success{model="classifier",version="1"} 63
nv_inference_request_success{model="classifier_0123456789ab",version="1"} 7
nv_inference_request_success{model="classifier_topic",version="1"} 1e+03
nv_inference_compute_infer_duration_us{model="classifier",version="1"} 5000000
text_classifier_refused_requests_total{model="tokenizer",reason="invalid"} 5
text_classifier_refused_requests_total{model="tokenizer",reason="overload"} 4
text_classifier_tokens_sum{model="tokenizer"} 10000
nv_cpu_utilization 1
"""


def test_classifier_counts_with_the_candidate_of_a_release():
    assert parse(PAGE).answered("text_classifier") == 70
    assert parse(PAGE).answered("topic") == 1000


def test_only_overload_is_a_refusal():
    assert parse(PAGE).refused("text_classifier") == 4


def test_time_of_a_token():
    assert parse(PAGE).seconds_per_token("text_classifier") == pytest.approx(0.0005)
    assert parse(PAGE).seconds_per_token("topic") is None


def test_silent_server_has_no_counters():
    assert read_counters(f"127.0.0.1:{free_ports(1)[0]}") is None


def page(answered: int, refused: int) -> str:
    return (
        f'nv_inference_request_success{{model="classifier"}} {answered}\n'
        f'text_classifier_refused_requests_total{{model="tokenizer",reason="overload"}} {refused}\n'
    )


@pytest.mark.parametrize(("answered", "refused", "expected"), [(10, 9, []), (10, 11, ["text_classifier"])])
def test_overload_is_more_refusals_than_answers_in_a_window(answered, refused, expected):
    overload = Overload()
    overload.add(0.0, parse(page(1000, 0)))
    overload.add(WINDOW_S / 2, parse(page(1000, 0)))
    assert overload.overloaded(["text_classifier"]) == []
    overload.add(WINDOW_S, parse(page(1000 + answered, refused)))
    assert overload.overloaded(["text_classifier"]) == expected
    overload.add(2 * WINDOW_S, parse(page(1000 + answered, refused)))
    assert overload.overloaded(["text_classifier"]) == []
