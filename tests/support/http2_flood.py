"""Open many HTTP/2 connections with many streams each, and leave the last byte of every body unsent.

    python -m tests.support.http2_flood --host 192.0.2.1 --port 8443 --connections 79 --streams 100 --body 60000

Prints "flooding" once all is sent, then holds the connections until its standard input is closed, and prints one JSON
object: connections and streams that the server accepted. Speaks just enough HTTP/2 for that (RFC 9113, RFC 7541).
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import ssl
import struct
import sys
import time

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_HEADERS, ACK = 4, 1
MAX_STREAMS = 3
FRAME = 16_384
# Connection window of a peer that has sent no WINDOW_UPDATE.
WINDOW = 65_535
PATH = "/v2/models/text_classifier/infer"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman coding."""

    def text(content: str) -> bytes:
        assert len(content) < 127
        return bytes([len(content)]) + content.encode()

    return b"\0" + text(name) + text(value)


class Connection:
    """One TLS connection with HTTP/2. accepted: streams whose body was sent and that the server did not reset."""

    def __init__(self, host: str, port: int, source: str):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, port), 10, (source, 0) if source else None)
        self.socket = context.wrap_socket(plain)
        self.window, self.limit, self.closed = WINDOW, 100, False
        self.received, self.accepted = b"", set()
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
        self.read(1.0)  # its SETTINGS, with the number of streams

    def read(self, wait_s: float) -> None:
        """Take in what the server sent; wait for it at most this long."""
        while self.socket.pending() or select.select([self.socket], [], [], wait_s)[0]:
            wait_s = 0
            if not (part := self.socket.recv(65_536)):
                self.closed = True
                return
            self.received += part
            while len(self.received) >= 9 + (length := int.from_bytes(self.received[:3], "big")):
                kind, flags, stream = struct.unpack(">BBI", self.received[3:9])
                payload, self.received = self.received[9 : 9 + length], self.received[9 + length :]
                self.take(kind, flags, stream, payload)

    def take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[at : at + 6])
                self.limit = value if name == MAX_STREAMS else self.limit
            self.socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(payload, "big")
        elif kind in (RST_STREAM, HEADERS):  # refused, or answered before the body was complete
            self.accepted.discard(stream)
        elif kind == GOAWAY:
            self.closed = True

    def flood(self, streams: int, body: int) -> None:
        """Send the streams, more than the server's limit if asked to."""
        fields = {":method": "POST", ":scheme": "https", ":path": PATH, ":authority": "flood"}
        block = b"".join(literal(*field) for field in {**fields, "content-length": str(body + 1)}.items())
        deadline = time.monotonic() + 0.5  # a stream that gets no credit is left as it is
        for stream in range(1, 2 * streams, 2):
            self.socket.sendall(frame(HEADERS, END_HEADERS, stream, block))
            self.accepted.add(stream)
            left = body
            while left and not self.closed and stream in self.accepted and time.monotonic() < deadline:
                self.read(0.0 if self.window >= FRAME else 0.2)
                part = min(left, FRAME, self.window)
                self.socket.sendall(frame(DATA, 0, stream, b" " * part))
                left, self.window = left - part, self.window - part
            if self.closed or time.monotonic() > deadline:
                return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--source", default="", help="address to connect from")
    parser.add_argument("--connections", type=int)
    parser.add_argument("--streams", type=int)
    parser.add_argument("--body", type=int)
    options = parser.parse_args()
    held: list[Connection] = []
    for _ in range(options.connections):
        try:
            connection = Connection(options.host, options.port, options.source)
            held.append(connection)
            connection.flood(options.streams, options.body)
        except OSError:
            pass  # refused or closed by the proxy
    print("flooding", flush=True)
    sys.stdin.read()
    accepted = 0
    for connection in held:
        try:
            connection.read(0.0)
        except OSError:
            connection.closed = True
        accepted += 0 if connection.closed else len(connection.accepted)
    print(json.dumps({"connections": len(held), "streams": accepted}))


if __name__ == "__main__":
    main()
