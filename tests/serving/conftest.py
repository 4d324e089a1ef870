"""Stand-ins for tritonserver, each gone when its test ends: its HTTP side, and its processes."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from build_scripts.serving.triton import TritonProcess
from tests.support.fake_frontend import Frontend


@pytest.fixture
def frontend() -> Iterator[Callable[..., Frontend]]:
    """frontend(*statuses), listening until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*statuses: int | None) -> Frontend:
            server = stack.enter_context(Frontend(*statuses))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            stack.callback(server.closing.set)
            return server

        yield start


@pytest.fixture
def process() -> Iterator[Callable[..., TritonProcess]]:
    """process(*command), in the place of tritonserver; gone when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> TritonProcess:
            started = subprocess.Popen(command, start_new_session=True)
            server = TritonProcess(started, f"text_classifier_stand_in_{started.pid}_")
            stack.callback(server.kill)
            return server

        yield start
