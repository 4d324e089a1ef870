"""Work that the backend splits into parts: every request is answered once, like Hugging Face."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.names import CLASSIFIER, ENSEMBLE
from build_scripts.core.paths import PROJECT
from build_scripts.serving.pytorch_backend import schedule as policy
from tests.support import fake_triton
from tests.support.fake_triton import TritonError
from tests.support.servers import embedded
from tests.support.token_batches import MAX_LOGIT_ERROR, batch, eager
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.usefixtures("one_thread")

UNKNOWN_ID = 10**6
LENGTHS = [7, 20, 11, 5, 20, 20, 3]


@pytest.fixture
def backend(load):
    """A backend that computes one row per part and waits for `gate` to open."""
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
    """Blocks the model until `open`, and records its batches. bad: a row that makes it fail."""

    def __init__(self):
        self.open, self.reached, self.batches = threading.Event(), threading.Event(), []
        self.bad: list[int] = []

    def passed(self, input_ids: Tensor) -> None:
        self.reached.set()
        assert self.open.wait(HANG_S)
        self.batches.append(input_ids.tolist())
        if self.bad in input_ids.tolist():
            raise RuntimeError("cannot be computed")


def request(input_ids: Tensor, attention_mask: Tensor) -> fake_triton.Request:
    return fake_triton.Request(INPUT__0=input_ids.numpy(), INPUT__1=attention_mask.numpy())


def hand_over(backend, *requests: fake_triton.Request) -> None:
    """Executes the requests; returns once the worker computes."""
    assert backend.execute(list(requests)) is None
    assert backend.gate.reached.wait(HANG_S)


def answers(*requests: fake_triton.Request) -> list[fake_triton.InferenceResponse]:
    """Exactly one response per request."""
    wait_for(lambda: all(one.sent for one in requests), "no answer")
    assert all(len(one.sent) == 1 for one in requests)
    return [one.sent[0] for one in requests]


def assert_like_hugging_face(response, subject, input_ids: Tensor, attention_mask: Tensor) -> None:
    assert response.error is None
    expected = eager(subject, input_ids, attention_mask)
    assert response.outputs["OUTPUT__0"].tolist() == expected.argmax(1, keepdim=True).tolist()
    assert (torch.from_numpy(response.outputs["OUTPUT__1"]) - expected.softmax(1)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("rate", [1e-9, 200.0, 1e9], ids=["a row a part", "a few rows", "all at once"])
def test_answers_are_independent_of_the_parts(backend, subject, rate):
    input_ids, mask = batch(subject("bert"), LENGTHS)
    backend.worker.schedule.rate = rate
    backend.worker.busy = True  # makes `execute` hand over
    backend.gate.open.set()
    rows = [3, 1, 2, 1]
    requests = [request(*pair) for pair in zip(input_ids.split(rows), mask.split(rows))]
    hand_over(backend, *requests)
    for one, ids, ones in zip(answers(*requests), input_ids.split(rows), mask.split(rows)):
        assert_like_hugging_face(one, subject("bert"), ids, ones)
    assert len(backend.gate.batches) == {1e-9: 7, 200.0: 6, 1e9: 1}[rate]


def test_execute_computes_a_lone_text_or_one_part_itself(backend, subject):
    input_ids, mask = batch(subject("bert"), LENGTHS)
    backend.gate.open.set()
    assert policy.QUEUES[0] >= 7  # tokens of the lone text
    (response,) = backend.execute([request(input_ids[:1], mask[:1])])
    assert_like_hugging_face(response, subject("bert"), input_ids[:1], mask[:1])
    backend.worker.schedule.rate = 1e9
    requests = [request(input_ids[:2], mask[:2]), request(input_ids[2:3], mask[2:3])]
    assert backend.execute(requests) is None
    assert [len(one.sent) for one in requests] == [1, 1]
    assert not backend.worker.schedule
    assert backend.gate.batches == [input_ids[:1].tolist(), input_ids[:3].tolist()]


def test_responses_hold_the_requested_outputs_only(backend, subject):
    """Of a lone request, of a batch, and of the worker."""
    ids, mask = batch(subject("bert"), [5, 6, 7, 8])
    backend.gate.open.set()
    backend.worker.schedule.rate = 1e9
    alone, first, second, later = requests = [request(ids[row : row + 1], mask[row : row + 1]) for row in range(4)]
    for one in requests:
        one.requested = ["OUTPUT__0"]
    responses = backend.execute([alone])
    assert backend.execute([first, second]) is None
    backend.worker.busy = True
    hand_over(backend, later)
    assert [[*one.outputs] for one in [*responses, *answers(first, second, later)]] == [["OUTPUT__0"]] * 4


def test_short_request_overtakes_long_one(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    long, short = request(ids, mask), request(ids[:1], mask[:1])
    hand_over(backend, long)
    assert backend.execute([short]) is None
    order = []
    for name, one in (("long", long), ("short", short)):
        one.send = lambda response, flags, name=name: order.append(name)
    backend.gate.open.set()
    wait_for(lambda: len(order) == 2, str(order))
    assert order == ["short", "long"]
    assert backend.gate.batches[1] == ids[:1].tolist()


def test_short_requests_are_computed_beside_a_long_text(backend, subject):
    """The long text is in progress all the time. What exceeds a part waits for it."""
    ids, mask = batch(subject("bert"), [100, 20, 20, 20])
    complete, reached, opened = backend.model, threading.Event(), threading.Event()

    def model(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        if attention_mask.sum() >= 100:
            reached.set()
            assert opened.wait(HANG_S)
        return complete(input_ids, attention_mask)

    backend.model = model
    backend.gate.open.set()
    long, first, second = (request(ids[[row]], mask[[row]]) for row in range(3))
    many = request(ids[[3] * 4], mask[[3] * 4])
    assert backend.execute([long]) is None
    assert reached.wait(HANG_S)
    assert backend.execute([first, many, second]) is None
    assert [len(one.sent) for one in (long, first, second, many)] == [0, 1, 1, 0]
    opened.set()
    for one, rows in ((long, [0]), (first, [1]), (second, [2]), (many, [3] * 4)):
        assert_like_hugging_face(*answers(one), subject("bert"), ids[rows], mask[rows])


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


def test_failure_in_a_part_fails_only_its_request(backend, subject):
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


def test_failed_request_is_not_computed_further(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    backend.gate.bad = ids[1].tolist()
    failing, other = request(ids, mask), request(ids[2:4], mask[2:4])
    backend.gate.open.set()
    hand_over(backend, failing, other)
    failed, answered = answers(failing, other)
    assert "cannot be computed" in failed.error.message()
    assert_like_hugging_face(answered, subject("bert"), ids[2:4], mask[2:4])
    assert len(backend.gate.batches) == 4


def test_bad_value_is_refused_at_once(backend, subject):
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


def test_cancelled_request_is_not_computed_further(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 6)
    left, other = request(ids, mask), request(ids[:2], mask[:2])
    monkeypatch.setitem(backend.worker.is_cancelled.__globals__, "CANCELLABLE_TOKENS", 1)
    hand_over(backend, left)
    backend.execute([other])
    left.cancelled = True
    backend.gate.open.set()
    gone, answered = answers(left, other)
    assert gone.error.code() == TritonError.CANCELLED
    assert_like_hugging_face(answered, subject("bert"), ids[:2], mask[:2])
    assert len(backend.gate.batches) == 3  # the part in progress, and the other request's two


class Condition(threading.Condition):
    """Shows that a thread blocks. blocked: set when the thread named "execute" waits for something."""

    def __init__(self) -> None:
        super().__init__()
        self.blocked = threading.Event()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if threading.current_thread().name == "execute" and not predicate():
            self.blocked.set()
        return super().wait_for(predicate, timeout)


@contextlib.contextmanager
def blocked_execution(backend, one: fake_triton.Request) -> Iterator[None]:
    """Execute a request in a thread; it must block before the gate opens, and return afterwards."""
    backend.worker.changed = Condition()
    waiting = threading.Thread(target=backend.execute, args=[[one]], name="execute")
    yield
    waiting.start()
    assert backend.worker.changed.blocked.wait(HANG_S)
    assert waiting.is_alive()
    backend.gate.open.set()
    waiting.join(HANG_S)
    assert not waiting.is_alive()


def test_execute_blocks_at_the_backlog_limit_and_the_gauge_shows_the_backlog(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 6)
    monkeypatch.setitem(backend.worker.schedule.has_room_for.__globals__, "HELD_REQUESTS", 3)
    monkeypatch.setitem(backend.worker.gauge.show.__globals__, "INTERVAL_S", 0.0)
    first = [request(ids, mask) for _ in range(3)]
    more, last = request(ids, mask), request(ids, mask)
    values = backend.worker.gauge.family.values
    with blocked_execution(backend, last):
        hand_over(backend, *first)  # the first of them is in progress
        assert backend.execute([more]) is None
        assert values[-1] == 3
    answers(*first, more, last)
    backend.finalize()
    assert values[-1] == 0
    assert max(values) == 3


def test_two_processes_of_a_model_share_no_gauge(backend):
    """Triton frees a metric with the first of two owners, and a release loads a model twice."""
    [labels] = backend.worker.gauge.family.told
    assert labels == (("model", "classifier"), ("process", str(os.getpid())))


def test_execute_blocks_during_a_part_so_that_triton_joins_requests(backend, subject, monkeypatch):
    ids, mask = batch(subject("bert"), [20] * 2)
    monkeypatch.setitem(backend.worker.hand_over.__globals__, "LARGE_S", HANG_S)
    first, second = request(ids, mask), request(ids, mask)
    with blocked_execution(backend, second):
        hand_over(backend, first)  # its first row is in progress
    answers(first, second)


def test_unloading_waits_for_the_backlog(backend, subject):
    ids, mask = batch(subject("bert"), [20] * 6)
    held = [request(ids, mask) for _ in range(3)]
    hand_over(backend, *held)
    threading.Timer(0.1, backend.gate.open.set).start()
    backend.finalize()
    assert [len(one.sent) for one in held] == [1, 1, 1]


def test_only_the_computing_thread_keeps_openmp_threads(backend, subject, monkeypatch):
    """Both sets together exceed the cores, and libgomp then sleeps between two products."""
    released: list[str] = []
    for owner in (backend, backend.worker):
        monkeypatch.setattr(owner, "release", lambda: released.append(threading.current_thread().name))
    ids, mask = batch(subject("bert"), [20] * 6)
    held = request(ids, mask)
    hand_over(backend, held)
    assert released == [threading.current_thread().name]
    backend.gate.open.set()
    answers(held)
    wait_for(lambda: released[1:] == ["parts"], "the thread kept its OpenMP threads")


def test_released_openmp_threads_restart_with_the_next_product():
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
    while threads() > with_them - 2 and time.monotonic() < end:  # they end a moment later
        time.sleep(0.01)
    print(with_them - threads())
    assert torch.equal(torch.exp(x), before)
    print(with_them - threads())
"""
    done = subprocess.run([sys.executable, "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=HANG_S)
    assert done.stdout.split() == ["2", "0"] * 2, done.stderr


def test_model_without_a_mask_costs_its_width(backend):
    backend.inputs = backend.inputs[:1]
    assert backend.costs_of(fake_triton.Request(INPUT__0=np.zeros((2, 30), np.int64))) == [30, 30]


@pytest.mark.parametrize(("mask", "tokens"), [([[1, 1, 0]], [2]), ([[0, 0, 0]], [1]), ([[1, 0, 7], [0, 0, 0]], [2, 1])])
def test_cost_is_the_models_token_count(backend, mask, tokens):
    array = np.array(mask, dtype=np.int64)
    assert backend.costs_of(fake_triton.Request(INPUT__0=array, INPUT__1=array)) == tokens


@pytest.mark.server
@pytest.mark.skipif(not embedded(), reason="NVIDIA's backend computes a batch in one go")
def test_real_server_answers_short_texts_during_a_batch(default_server):
    data = np.full((64, 512), 2000)
    inputs = [
        {"name": f"INPUT__{index}", "shape": [64, 512], "datatype": "INT64", "data": array.ravel().tolist()}
        for index, array in enumerate((data, np.ones_like(data)))
    ]

    def post(model: str, body: dict) -> dict:
        url = f"{default_server.http}/v2/models/{model}/infer"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=HANG_S) as response:
            return json.load(response)

    def short_answers(batches: int) -> int:
        """Short requests answered, one after the other, before as many batches as this are done."""
        with ThreadPoolExecutor(batches) as pool:
            computing = [pool.submit(post, CLASSIFIER, {"inputs": inputs}) for _ in range(batches)]
            answered = 0
            while not all(one.done() for one in computing):
                post(ENSEMBLE, infer_body(["Midfielder scores twice"]))
                answered += 1
        assert all(one.result()["outputs"] for one in computing)
        return answered

    # A fast machine needs more batches to be busy. Without parts at most one short request passes per batch.
    assert any(short_answers(batches) > 4 * batches for batches in (1, 4, 16))
