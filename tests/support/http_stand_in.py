"""An HTTP server for tests: a function answers each request. Serves while its `with` block runs.

with StandIn(lambda request: Reply(200, b"{}")) as server:
    httpx.get(server.url)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from typing_extensions import Self


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    line: str


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class StandIn(ThreadingHTTPServer):
    """On a free port of 127.0.0.1, unless told otherwise. connections: opened so far."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], Reply], address: tuple[str, int] = ("127.0.0.1", 0)):
        self.answer = answer
        self.connections = 0
        super().__init__(address, _Handler)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self.server.answer(Request(self.command, self.path, self.headers, body, self.requestline))
        with contextlib.suppress(ConnectionError):  # the client may have given up
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = handle_one

    def log_message(self, *_: object) -> None:
        pass
