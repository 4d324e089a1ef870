"""What the backend computes in parts: every request is answered once, by itself, and like Hugging Face."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import pytest
import torch
from torch import Tensor

from build_scripts.core.names import CLASSIFIER, ENSEMBLE
from build_scripts.core.paths import PROJECT
from tests.support import fake_triton
from tests.support.fake_triton import TritonError
from tests.support.servers import embedded, wait_for
from tests.support.token_batches import MAX_LOGIT_ERROR, batch, eager

pytestmark = pytest.mark.usefixtures("one_thread")

LIMIT_S = 30.0
UNKNOWN_ID = 10**6
LENGTHS = [7, 20, 11, 5, 20, 20, 3]


@pytest.fixture
def backend(load):
    """Computes a row a part, and begins when `gate` opens."""
    backend = load()
    backend.worker.schedule.rate = 1e-9
    backend.worker.schedule.measured = lambda tokens, seconds: None
    backend.gate, complete = Gate(), backend.model

    def model(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        backend.gate.passed(input_ids)
        return complete(input_ids, attention_mask)

    backend.model = model
    yield backend
    backend.gate.open.set()
    backend.finalize()


class Gate:
    """Where the model waits, and notes what is computed. bad: the row that makes it fail."""

    def __init__(self):
        self.open, self.reached, self.batches = threading.Event(), threading.Event(), []
        self.bad: list[int] = []

    def passed(self, input_ids: Tensor) -> None:
        self.reached.set()
        assert self.open.wait(LIMIT_S)
        self.batches.append(input_ids.tolist())
        if self.bad in input_ids.tolist():
            raise RuntimeError("cannot be computed")


def request(input_ids: Tensor, attention_mask: Tensor) -> fake_triton.Request:
    return fake_triton.Request(INPUT__0=input_ids.numpy(), INPUT__1=attention_mask.numpy())


def hand_over(backend, *requests: fake_triton.Request) -> None:
    """One execution; returns once the worker has begun."""
    assert backend.execute(list(requests)) is None
    assert backend.gate.reached.wait(LIMIT_S)


def answers(*requests: fake_triton.Request) -> list[fake_triton.InferenceResponse]:
    """What each was sent: exactly one response."""
    wait_for(lambda: all(one.sent for one in requests), LIMIT_S, "no answer")
    assert all(len(one.sent) == 1 for one in requests)
    return [one.sent[0] for one in requests]


def assert_like_hugging_face(response, subject, input_ids: Tensor, attention_mask: Tensor) -> None:
    assert response.error is None
    expected = eager(subject, input_ids, attention_mask)
    assert response.outputs["OUTPUT__0"].tolist() == expected.argmax(1, keepdim=True).tolist()
    assert (torch.from_numpy(response.outputs["OUTPUT__1"]) - expected.softmax(1)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("rate", [1e-9, 200.0, 1e9], ids=["a row a part", "a few rows", "all at once"])
def test_answers_do_not_depend_on_the_parts(backend, subject, rate):
    input_ids, mask = batch(subject("bert"), LENGTHS)
    backend.worker.schedule.rate = rate
    backend.worker.busy = True  # as if something was computed: nothing is then computed by `execute` itself
    backend.gate.open.set()
    rows = [3, 1, 2, 1]
    requests = [request(*pair) for pair in zip(input_ids.split(rows), mask.split(rows))]
    hand_over(backend, *requests)
    for one, ids, ones in zip(answers(*requests), input_ids.split(rows), mask.split(rows)):
        assert_like_hugging_face(one, subject("bert"), ids, ones)
    assert len(backend.gate.batches) == {1e-9: 7, 200.0: 6, 1e9: 1}[rate]


def test_a_lone_text_is_computed_by_execute_itself_and_several_if_they_are_one_part(backend, subject):
    input_ids, mask = batch(subject("bert"), LENGTHS)
    backend.gate.open.set()
    (response,) = backend.execute([request(input_ids[:1], mask[:1])])
    assert_like_hugging_face(response, subject("bert"), input_ids[:1], mask[:1])
    backend.worker.schedule.rate = 1e9
    requests = [request(input_ids[:2], mask[:2]), request(input_ids[2:3], mask[2:3])]
    assert backend.execute(requests) is None
    assert [len(one.sent) for one in requests] == [1, 1]
    assert not backend.worker.schedule
    assert backend.gate.batches == [input_ids[:1].tolist(), input_ids[:3].tolist()]


def test_a_short_request_is_answered_before_a_long_one_that_came_first(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    long, short = request(ids, mask), request(ids[:1], mask[:1])
    hand_over(backend, long)
    assert backend.execute([short]) is None
    order = []
    for name, one in (("long", long), ("short", short)):
        one.send = lambda response, flags, name=name: order.append(name)
    backend.gate.open.set()
    wait_for(lambda: len(order) == 2, LIMIT_S, str(order))
    assert order == ["short", "long"]
    assert backend.gate.batches[1] == ids[:1].tolist()


def test_requests_of_different_widths_are_not_joined(backend, subject):
    ids, mask = batch(subject("bert"), LENGTHS)
    backend.worker.schedule.rate = 1e9
    wide, narrow = request(ids, mask), request(ids[3:4, :10].contiguous(), mask[3:4, :10].contiguous())
    backend.worker.busy = True
    hand_over(backend, wide)
    backend.execute([narrow])
    backend.execute([wide_too := request(ids, mask)])
    backend.gate.open.set()
    for one, rows in zip(answers(wide, narrow, wide_too), (slice(None), slice(3, 4), slice(None))):
        assert_like_hugging_face(one, subject("bert"), ids[rows], mask[rows])


def test_what_fails_in_a_part_costs_only_its_own_request(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    backend.worker.schedule.rate = 1e9
    backend.gate.bad = ids[4].tolist()
    backend.worker.busy = True
    requests = [request(ids[:2], mask[:2]), request(ids[2:], mask[2:]), request(ids[:1], mask[:1])]
    backend.gate.open.set()
    hand_over(backend, *requests)
    good, failed, good_too = answers(*requests)
    assert failed.error.code() == TritonError.INTERNAL
    assert "cannot be computed" in failed.error.message()
    assert_like_hugging_face(good, subject("bert"), ids[:2], mask[:2])
    assert_like_hugging_face(good_too, subject("bert"), ids[:1], mask[:1])


def test_after_a_part_that_failed_the_rest_of_its_request_is_not_computed(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    backend.gate.bad = ids[1].tolist()
    failing, other = request(ids, mask), request(ids[2:4], mask[2:4])
    backend.gate.open.set()
    hand_over(backend, failing, other)
    failed, answered = answers(failing, other)
    assert "cannot be computed" in failed.error.message()
    assert_like_hugging_face(answered, subject("bert"), ids[2:4], mask[2:4])
    assert len(backend.gate.batches) == 4


def test_a_bad_value_is_refused_at_once_and_costs_its_neighbours_nothing(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    bad = ids[2:4].clone()
    bad[1, 3] = UNKNOWN_ID
    good, refused = request(ids[:2], mask[:2]), request(bad, mask[2:4])
    hand_over(backend, good, refused)
    (response,) = answers(refused)
    assert response.error.code() == TritonError.INVALID_ARG
    assert f"token id {UNKNOWN_ID} in column 3" in response.error.message()
    backend.gate.open.set()
    assert_like_hugging_face(*answers(good), subject("bert"), ids[:2], mask[:2])


def test_what_nobody_waits_for_any_more_is_not_computed(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 6)
    left, other = request(ids, mask), request(ids[:2], mask[:2])
    monkeypatch.setitem(backend.worker.is_cancelled.__globals__, "TOKENS_WORTH_ASKING", 1)
    hand_over(backend, left)
    backend.execute([other])
    left.cancelled = True
    backend.gate.open.set()
    gone, answered = answers(left, other)
    assert gone.error.code() == TritonError.CANCELLED
    assert_like_hugging_face(answered, subject("bert"), ids[:2], mask[:2])
    assert len(backend.gate.batches) == 3  # the part that had begun, and the other's two


def test_beyond_what_may_be_held_execute_waits_and_the_metric_tells_how_many_are_held(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 6)
    monkeypatch.setitem(backend.worker.schedule.has_room_for.__globals__, "HELD_REQUESTS", 3)
    monkeypatch.setitem(backend.worker.gauge.show.__globals__, "GAUGE_INTERVAL_S", 0.0)
    first = [request(ids, mask) for _ in range(3)]
    hand_over(backend, *first)  # the first of them has begun
    more, last = request(ids, mask), request(ids, mask)
    assert backend.execute([more]) is None
    values = backend.worker.gauge.family.values
    assert values[-1] == 3
    waiting = threading.Thread(target=backend.execute, args=[[last]])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    backend.gate.open.set()
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    answers(*first, more, last)
    backend.finalize()
    assert values[-1] == 0
    assert max(values) == 3


def test_execute_waits_for_the_part_that_is_computed_so_that_triton_joins_what_arrives(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 2)
    monkeypatch.setitem(backend.worker.hand_over.__globals__, "LARGE_S", LIMIT_S)
    first, second = request(ids, mask), request(ids, mask)
    hand_over(backend, first)  # its first row has begun
    waiting = threading.Thread(target=backend.execute, args=[[second]])
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    backend.gate.open.set()
    waiting.join(LIMIT_S)
    assert not waiting.is_alive()
    answers(first, second)


def test_what_is_held_is_answered_before_the_model_is_unloaded(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    held = [request(ids, mask) for _ in range(3)]
    hand_over(backend, *held)
    threading.Timer(0.1, backend.gate.open.set).start()
    backend.finalize()
    assert [len(one.sent) for one in held] == [1, 1, 1]


def test_only_who_computes_keeps_openmp_threads(backend, subject, monkeypatch):
    """With those of both there are more than cores, and libgomp then lets all of them sleep between two products."""
    released: list[str] = []
    for owner in (backend, backend.worker):
        monkeypatch.setattr(owner, "release", lambda: released.append(threading.current_thread().name))
    ids, mask = batch(subject("bert"), [20] * 6)
    held = request(ids, mask)
    hand_over(backend, held)  # the thread is at work
    assert released == [threading.current_thread().name]
    backend.gate.open.set()
    answers(held)
    wait_for(lambda: released[1:] == ["parts"], LIMIT_S, "the thread kept its own")


def test_openmp_threads_end_when_they_are_released_and_come_back_with_the_next_product():
    command = """
import os, time, torch
from build_scripts.serving.pytorch_backend.openmp import releaser
torch.set_num_threads(3)
x = torch.ones(1 << 20)
threads = lambda: len(os.listdir("/proc/self/task"))
before = torch.exp(x)
with_them = threads()
release = releaser()
for _ in range(2):
    release()
    end = time.monotonic() + 20
    while threads() > with_them - 2 and time.monotonic() < end:  # they end by themselves, a moment later
        time.sleep(0.01)
    print(with_them - threads())
    assert torch.equal(torch.exp(x), before)
    print(with_them - threads())
"""
    done = subprocess.run([sys.executable, "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "0"] * 2, done.stderr


def test_a_model_of_one_input_costs_its_whole_width(backend):
    backend.inputs = backend.inputs[:1]
    assert backend.costs_of(fake_triton.Request(INPUT__0=np.zeros((2, 30), np.int64))) == [30, 30]


@pytest.mark.parametrize(("mask", "tokens"), [([[1, 1, 0]], [2]), ([[0, 0, 0]], [1]), ([[1, 0, 7], [0, 0, 0]], [2, 1])])
def test_a_text_costs_the_tokens_that_the_model_counts(backend, mask, tokens):
    array = np.array(mask, dtype=np.int64)
    assert backend.costs_of(fake_triton.Request(INPUT__0=array, INPUT__1=array)) == tokens


@pytest.mark.server
@pytest.mark.skipif(not embedded(), reason="NVIDIA's backend computes a batch in one go")
def test_a_real_server_answers_short_texts_while_it_computes_a_batch(default_server):
    data = np.full((64, 512), 2000)
    inputs = [
        {"name": f"INPUT__{index}", "shape": [64, 512], "datatype": "INT64", "data": array.ravel().tolist()}
        for index, array in enumerate((data, np.ones_like(data)))
    ]

    def post(model: str, body: dict) -> dict:
        url = f"{default_server.http}/v2/models/{model}/infer"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as response:
            return json.load(response)

    found = []
    computing = threading.Thread(target=lambda: found.append(post(CLASSIFIER, {"inputs": inputs})))
    computing.start()
    text = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["Midfielder scores twice"]}
    meanwhile = 0
    while computing.is_alive():
        post(ENSEMBLE, {"inputs": [text]})
        meanwhile += 1
    assert len(found) == 1
    assert meanwhile >= 20
