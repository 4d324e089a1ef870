"""One exchange has one deadline, whatever the server does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from build_scripts.serving.keep.inference import Outcome, probe
from build_scripts.serving.keep.local_http import exchange
from tests.support.waiting import HANG_S

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server that reads one request and then does as it is told."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    answer(connection, done)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def drip(connection: socket.socket, done: threading.Event) -> None:
    """Send a byte every 50 ms: no pause is as long as the timeout."""
    for byte in HEAD + b"{" * 100000:
        if done.wait(0.05):
            return
        connection.send(bytes([byte]))


def test_timeout_is_of_the_whole():
    """The server drips for over an hour."""
    with serving(drip) as url:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            exchange(f"{url}/v2", timeout_s=0.5)
        assert time.monotonic() - began < 600


def test_dripping_server_is_silent():
    with serving(drip) as url:
        assert probe(url, 0.5).outcome is Outcome.SILENT


def test_answer_that_arrived_before_the_deadline_is_read(monkeypatch):
    """This process may have waited for the CPU, and not the server."""
    sent = threading.Event()

    def answer(connection: socket.socket, _: threading.Event) -> None:
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        sent.set()

    clock = iter([0.0, 100.0, 200.0, 300.0])
    with serving(answer) as url:
        real = socket.socket.sendall

        def sendall(self, data):
            real(self, data)
            if data.startswith(b"GET"):
                sent.wait(HANG_S)

        monkeypatch.setattr(socket.socket, "sendall", sendall)
        monkeypatch.setattr("build_scripts.serving.keep.local_http.time.monotonic", lambda: next(clock))
        found = exchange(f"{url}/v2", timeout_s=1.0)
        monkeypatch.undo()
    assert found == (200, b"{}")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 abc\r\n\r\n"])
def test_anything_else_is_not_http(answer):
    with (
        serving(lambda connection, _: connection.sendall(answer)) as url,
        pytest.raises(ValueError, match="not HTTP"),
    ):
        exchange(f"{url}/v2", timeout_s=60.0)
