"""HTTP to the server on this machine: never through a proxy, and with one deadline for the whole exchange."""

from __future__ import annotations

import socket
import time

# Largest answer that is read: ten times a metrics page with thirty classifiers.
MAX_BYTES = 8 << 20


def exchange(url: str, body: bytes | None = None, *, timeout_s: float) -> tuple[int, bytes]:
    """GET, or POST if there is a body; returns status and body.

    Raises OSError (TimeoutError at the deadline, however slowly bytes still arrive) or ValueError for no HTTP.
    """
    deadline = time.monotonic() + timeout_s
    place, slash, path = url.partition("://")[2].partition("/")
    host, _, port = place.rpartition(":")
    head = f"{'GET' if body is None else 'POST'} {slash}{path} HTTP/1.0\r\nHost: {place}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        connection.sendall(head.encode() + b"\r\n" + (body or b""))
        received = b""
        while not is_complete(received):
            # At 0 what has arrived is still read: this process may have waited for the CPU, and not the server.
            connection.settimeout(max(deadline - time.monotonic(), 0.0))
            try:
                part = connection.recv(1 << 16)
            except BlockingIOError as error:
                raise TimeoutError("timed out") from error
            if not part or len(received) > MAX_BYTES:
                break
            received += part
    start, _, answer = received.partition(b"\r\n\r\n")
    protocol, _, status = start[: len(b"HTTP/1.x 200")].partition(b" ")
    if not protocol.startswith(b"HTTP/") or not status.isdigit():
        raise ValueError(f"not HTTP: {received[:40]!r}")
    return int(status), answer


def is_complete(received: bytes) -> bool:
    """Whether the body has the length that the header names; without one it ends with the connection."""
    head, end, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n") if end else []:
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return False
