"""A server that takes too much memory is ended, for a reason that is told; any other is left alone."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from build_scripts.serving.keep import memory
from build_scripts.serving.keep.memory import MIB, MemoryWatch, private_bytes
from build_scripts.serving.keep.monitor import Worker, waiting_requests
from tests.support.servers import wait_for

NOTICED_WITHIN_S = 5.0
NOBODY = "127.0.0.1:1"
GROWS = "import time; time.sleep(0.5); held = bytearray(300 << 20); time.sleep(60)"


@pytest.fixture
def growing(process):
    """Takes 300 MiB at once, a moment after its start, and keeps them."""
    return process(sys.executable, "-c", GROWS)


@pytest.fixture
def as_stub(monkeypatch):
    """as_stub(model): a process of that model runs beside tritonserver."""

    def make(model: str) -> None:
        monkeypatch.setattr(memory, "cpu_seconds", lambda _: {Worker(2**22 + 1, model): 0.0})

    return make


def test_a_server_over_the_limit_is_ended_for_that_reason(growing):
    """What the supervisor has itself counts, here that of the test."""
    with MemoryWatch(growing, NOBODY, 150 * MIB + private_bytes(os.getpid())) as watch:
        wait_for(lambda: growing.poll() is not None, NOTICED_WITHIN_S, "still there")
    found = re.fullmatch(r"it took (\d+) MiB of memory, of (\d+) that it may take", watch.reason)
    assert int(found[1]) >= int(found[2])  # whole MiB


def test_a_server_below_the_limit_is_left_alone(growing):
    with MemoryWatch(growing, NOBODY, 1 << 50) as watch:
        wait_for(lambda: private_bytes(growing.process.pid) > 300 * MIB, NOTICED_WITHIN_S, "does not grow")
        time.sleep(5 * memory.LOOK_EVERY_S)
    assert watch.reason is None
    assert growing.poll() is None


@pytest.mark.parametrize(
    ("model", "waiting", "hold_s", "ended"),
    [
        ("classifier", 0, 0.3, True),
        ("classifier", 0, 60.0, False),
        ("classifier", 2, 0.3, True),
        ("classifier", 60, 0.3, False),
        ("classifier", None, 0.3, False),
        ("", 0, 0.3, False),
    ],
    ids=["held", "not for long", "held beside requests", "by requests that wait", "unknown", "with the models in it"],
)
@pytest.mark.slow
def test_what_tritonserver_holds_on_to_is_too_much_after_a_while(
    growing, as_stub, monkeypatch, model, waiting, hold_s, ended
):
    """If its models are other processes: NVIDIA's backend holds them in tritonserver. 300 MiB are held here."""
    as_stub(model)
    monkeypatch.setattr(memory, "waiting_requests", lambda _: waiting)
    monkeypatch.setattr(memory, "GROWTH_BYTES", 200 * MIB)
    monkeypatch.setattr(memory, "HOLD_S", hold_s)
    with MemoryWatch(growing, NOBODY, 1 << 50) as watch:
        wait_for(lambda: watch.reason or private_bytes(growing.process.pid) > 300 * MIB, NOTICED_WITHIN_S, "no growth")
        if ended:
            wait_for(lambda: growing.poll() is not None, NOTICED_WITHIN_S, "still there")
        else:
            time.sleep(3.0)
    assert (watch.reason is not None) is ended
    assert (growing.poll() is not None) is ended
    if ended:
        assert watch.reason.startswith("tritonserver held on to ")


@pytest.mark.parametrize(
    ("page", "waiting"),
    [
        (
            'nv_inference_pending_request_count{model="classifier",version="1"} 3\n'
            'nv_inference_pending_request_count{model="text_classifier",version="1"} 1e+01\n'
            'text_classifier_held_requests{model="classifier"} 2\nnv_inference_request_success{model="x"} 99\n',
            15,
        ),
        ("another service's page", None),
    ],
)
def test_the_requests_that_wait_are_read_from_the_metrics(page, waiting):
    with answering(page) as address:
        assert waiting_requests(address) == waiting
    assert waiting_requests(address) is None


@contextlib.contextmanager
def answering(page: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shared_memory_counts(process, monkeypatch, tmp_path):
    server = process("sleep", "60")
    (tmp_path / "segment").write_bytes(bytes(128 * MIB))
    monkeypatch.setattr(
        type(server), "shared_memory", lambda _: [tmp_path / "segment"] if server.poll() is None else []
    )
    with MemoryWatch(server, NOBODY, 64 * MIB + private_bytes(os.getpid())):
        wait_for(lambda: server.poll() is not None, NOTICED_WITHIN_S, "still there")
