"""The embedded server's pytorch backend answers each request like Hugging Face and refuses unsupported settings."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import psutil
import pytest
import torch
from torch import Tensor

from build_scripts.core.machine import cores
from tests.support import fake_triton
from tests.support.fake_triton import TritonError
from tests.support.servers import embedded
from tests.support.token_batches import MAX_LOGIT_ERROR, batch, eager

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [1, 2, 1]  # of each request
UNKNOWN_ID = 10**6


@pytest.fixture
def backend(load):
    return load()


@pytest.fixture
def inputs(subject) -> tuple[Tensor, Tensor]:
    """input_ids, attention_mask: (4, 20) int64, the rows of all requests. Padded columns hold ordinary token ids."""
    input_ids, mask = batch(subject("bert"), [7, 20, 11, 5])
    return torch.where(mask == 1, input_ids, 5), mask


class Watched:
    """A model that records each batch's number of rows, and fails on UNKNOWN_ID."""

    def __init__(self, model: Callable):
        self.model, self.batches = model, []

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(input_ids))
        if (input_ids == UNKNOWN_ID).any():
            raise RuntimeError("index out of range")
        return self.model(input_ids, attention_mask)


def execute(
    backend, input_ids: Tensor, attention_mask: Tensor, rows: list[int] = ROWS
) -> list[fake_triton.InferenceResponse]:
    """Exactly one response per request, returned or sent."""
    requests = [
        fake_triton.Request(INPUT__0=ids.numpy(), INPUT__1=mask.numpy())
        for ids, mask in zip(input_ids.split(rows), attention_mask.split(rows))
    ]
    returned = backend.execute(requests)
    sent = [response for request in requests for response in request.sent]
    assert (returned is None) != (sent == [])
    assert all(len(request.sent) <= 1 for request in requests)
    return returned or sent


def assert_answered(responses, subject, input_ids: Tensor, attention_mask: Tensor, *, but: tuple[int, ...] = ()):
    """Checks the answers of every request; the requests in `but` must have errors."""
    assert [index for index, response in enumerate(responses) if response.error] == list(but)
    expected = eager(subject, input_ids, attention_mask)
    for index, (response, logits) in enumerate(zip(responses, expected.split(ROWS), strict=True)):
        if index in but:
            assert not response.outputs
            continue
        assert response.outputs["OUTPUT__0"].tolist() == logits.argmax(1, keepdim=True).tolist()
        probabilities = torch.from_numpy(response.outputs["OUTPUT__1"])
        assert probabilities.shape == logits.shape
        assert (probabilities - logits.softmax(1)).abs().max() < MAX_LOGIT_ERROR


def test_joins_requests_into_one_batch_and_splits_it(backend, subject, inputs):
    backend.model = Watched(backend.model)
    responses = execute(backend, *inputs)
    assert backend.model.batches == [sum(ROWS)]
    assert_answered(responses, subject("bert"), *inputs)


@pytest.mark.parametrize(
    ("rows", "max_batch_size", "waits"),
    [([1, 2, 1], 64, True), ([2, 2], 64, True), ([4], 64, False), ([1, 1, 1, 1], 4, False)],
    ids=["three requests", "two", "one", "a full batch"],
)
def test_pauses_after_a_batch_of_several_requests(load, inputs, monkeypatch, rows, max_batch_size, waits):
    backend, waited = load(("max_batch_size: 64", f"max_batch_size: {max_batch_size}")), []
    own, sleep = threading.current_thread(), time.sleep

    def pause(seconds: float) -> None:  # threads of other tests may sleep too
        (waited.append if threading.current_thread() is own else sleep)(seconds)

    monkeypatch.setattr(time, "sleep", pause)
    execute(backend, *inputs, rows)
    assert len(waited) == waits
    assert all(0 < seconds < 0.01 for seconds in waited)


@pytest.mark.parametrize("rows", [[4], ROWS], ids=["one request", "three requests"])
def test_freed_memory_returns_to_the_system_at_intervals(backend, inputs, rows):
    execute(backend, *inputs, rows)  # allocates what stays for good
    blocks, large = [b"x" * 60_000 for _ in range(2000)], b"x" * (30 << 20)
    full = psutil.Process().memory_info().rss
    del blocks[::2], large
    execute(backend, *inputs, rows)
    kept = psutil.Process().memory_info().rss
    backend.heap.next_trim = 0.0
    assert len(execute(backend, *inputs, rows)) == len(rows)
    assert kept > full - (5 << 20)
    assert psutil.Process().memory_info().rss < full - (70 << 20)
    assert backend.heap.next_trim > time.monotonic()


@pytest.mark.parametrize("value", ["true", "False", "0"])
@pytest.mark.parametrize("name", ["INFERENCE_MODE", "DISABLE_OPTIMIZED_EXECUTION"])
def test_execution_modes_change_no_answer(load, subject, inputs, name, value):
    assert_answered(execute(load(parameter(name, value)), *inputs), subject("bert"), *inputs)


def test_outputs_with_too_few_rows_are_an_error(backend, inputs):
    complete = backend.model
    backend.model = lambda *tensors: [output[:1] for output in complete(*tensors)]
    two_rows = execute(backend, *inputs)[1]
    assert not two_rows.outputs
    assert "a batch of 2 rows got outputs of [1, 1]" in two_rows.error.message()


# Rows with an unknown id, and the requests they belong to.
@pytest.mark.parametrize(("rows", "requests"), [([2], (1,)), ([1, 2], (1,)), ([0, 3], (0, 2)), ([0, 1, 3], (0, 1, 2))])
def test_bad_id_fails_only_its_request(backend, subject, inputs, rows, requests):
    input_ids, mask = inputs
    bad = input_ids.clone()
    bad[rows, 3] = UNKNOWN_ID
    responses = execute(backend, bad, mask)
    assert_answered(responses, subject("bert"), input_ids, mask, but=requests)
    for index in requests:
        assert responses[index].error.code() == TritonError.INVALID_ARG
        assert f"token id {UNKNOWN_ID} in column 3" in responses[index].error.message()


def test_failed_batch_is_retried_request_by_request(backend, subject, inputs):
    backend.model, backend.check_inputs = Watched(backend.model), None
    input_ids, mask = inputs
    bad = input_ids.clone()
    bad[2, 3] = UNKNOWN_ID
    responses = execute(backend, bad, mask)
    assert backend.model.batches == [sum(ROWS), *ROWS]
    assert_answered(responses, subject("bert"), input_ids, mask, but=(1,))
    assert responses[1].error.code() == TritonError.INTERNAL
    assert "index out of range" in responses[1].error.message()


def parameter(name: str, value: str) -> tuple[str, str]:
    """An edit of config.pbtxt that sets a parameter."""
    return "dynamic_batching {}", f'parameters {{ key: "{name}", value: {{ string_value: "{value}" }} }}'


OPERATIONS = 'model_operations { op_library_filename: "operations.so" }'


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (parameter("ENABLE_WEIGHT_SHARING", "true"), "ENABLE_WEIGHT_SHARING"),
        (parameter("INFERENCE_MODE", "maybe"), "INFERENCE_MODE is 'maybe'; expected true or false"),
        (parameter("INTRA_OP_THREAD_COUNT", "two"), "INTRA_OP_THREAD_COUNT is 'two'; expected a number"),
        (parameter("INTER_OP_THREAD_COUNT", "0"), "INTER_OP_THREAD_COUNT is '0'; expected a number"),
        (("dynamic_batching {}", "sequence_batching {}"), "sequence_batching"),
        (("dynamic_batching {}", OPERATIONS), "model_operations"),
        (("INPUT__", "TOKENS_"), "expected tensors named INPUT__0, INPUT__1, found TOKENS_0, TOKENS_1"),
        (("OUTPUT__1", "B"), "expected tensors named OUTPUT__0, OUTPUT__1, found OUTPUT__0, B"),
        (('"INPUT__1", data_type: TYPE_INT64', '"INPUT__1", data_type: TYPE_STRING'), "INPUT__1: TYPE_STRING"),
        (('"OUTPUT__1", data_type: TYPE_FP32', '"OUTPUT__1", data_type: TYPE_BF16'), "OUTPUT__1: TYPE_BF16"),
    ],
)
def test_unknown_setting_stops_the_load(load, edit, named):
    with pytest.raises(fake_triton.TritonModelException) as stopped:
        load(edit)
    assert named in str(stopped.value)


def test_unknown_instance_kind_stops_the_load(load):
    with pytest.raises(fake_triton.TritonModelException, match="instance kind MODEL"):
        load(kind="MODEL")


def test_output_of_wrong_type_is_an_error(load, inputs):
    backend = load(('"OUTPUT__0", data_type: TYPE_INT64', '"OUTPUT__0", data_type: TYPE_INT32'))
    for response in execute(backend, *inputs):
        assert not response.outputs
        assert response.error.code() == TritonError.INTERNAL
        assert "OUTPUT__0 is torch.int64, the configuration says TYPE_INT32" in response.error.message()


@pytest.mark.skipif(not embedded(), reason="NVIDIA's backend computes in tritonserver's own process")
def test_classifier_on_the_cpu_runs_at_lower_priority(default_server):
    def priority(thread: int) -> int:
        return os.getpriority(os.PRIO_PROCESS, thread)

    # Their main threads; the tokenizer's thread for long texts has a lower priority too.
    others = [priority(default_server.find(word).pid) for word in ("tokenizer/1", "bin/tritonserver")]
    threads = [thread.id for thread in default_server.find("classifier/1").threads()]
    computing = [thread for thread in threads if priority(thread) > max(others)]
    assert len(computing) >= cores()
