"""Attacks below the level of a request: on connections, bytes and streams.

Each attack is bounded and goes to 127.0.0.1 only. It counts the outcomes of its requests: "answered" correctly,
"refused" with an error, "closed" by the server, "hung" beyond the deadline, "wrong". The caller interprets them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.serving.client import text_input
from tests.soak.hostile import GENERATE, INFER, MAX_REQUEST_BYTES, MAX_TEXT_BYTES
from tests.soak.traffic import class_ids

ANSWER_LIMIT_S = 20.0
# The server computes requests whose client is gone; a shorter interval would flood it.
HANG_UP_EVERY_S = 0.02
SLOW_CLIENTS, IDLE_CONNECTIONS, PIPELINED = 50, 2000, 20
UNPACKED_BYTES, CHUNKS, DEPTH = 200 << 20, 200_000, 200_000


@dataclass(frozen=True)
class Target:
    """text: an ordinary text. class_id, blank_class_id: Hugging Face's for it, and for a text of blanks."""

    address: Address
    text: str
    class_id: int
    blank_class_id: int

    def connect(self) -> socket.socket:
        host = (self.address.client_host, self.address.http_port)
        return socket.create_connection(host, timeout=ANSWER_LIMIT_S)


@dataclass(frozen=True)
class Attack:
    """run: attacks for about the given seconds. may_restart: may end the server, which must then recover in time."""

    name: str
    run: Callable[[Target, float], Counter]
    may_restart: bool = False


def request(body: bytes, headers: str = "", path: str = INFER) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode("ascii") + body


def infer_bytes(texts: list[str]) -> bytes:
    return json.dumps({**infer_body(texts), "outputs": [{"name": "CLASS_ID"}]}).encode()


def answers(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Status and body of each answer on a connection until it closes."""
    with connection.makefile("rb") as stream:
        while status_line := stream.readline():
            length = 0
            while (header := stream.readline()) not in (b"\r\n", b""):
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            yield int(status_line.split()[1]), stream.read(length)


def exchange(target: Target, sent: bytes, expected: list[int]) -> str:
    """Send bytes on a new connection; returns the outcome. expected: class ids of a 200."""
    try:
        with target.connect() as connection:
            with contextlib.suppress(ConnectionError):  # the server may refuse before it has read everything
                connection.sendall(sent)
            status, body = next(answers(connection))
    except TimeoutError:
        return "hung"
    except (OSError, StopIteration, ValueError):
        return "closed"
    if status != 200:
        return "refused"
    return "answered" if class_ids(body) == expected else "wrong"


def repeat(one: Callable[[], str], seconds: float, most: int = 1_000_000) -> Counter:
    """Count of each outcome, one request after the other."""
    outcomes: Counter = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end and outcomes.total() < most:
        outcomes[one()] += 1
    return outcomes


def large_blanks(target: Target, seconds: float) -> Counter:
    """Four clients with requests of the maximum size, made of maximum-length texts of blanks."""
    texts = [" " * MAX_TEXT_BYTES] * (MAX_REQUEST_BYTES // MAX_TEXT_BYTES)
    sent, expected = request(infer_bytes(texts)), [target.blank_class_id] * len(texts)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(repeat, lambda: exchange(target, sent, expected), seconds) for _ in range(4)]
        return sum((run.result() for run in runs), Counter())


def gzip_bomb(target: Target, seconds: float) -> Counter:
    """A small compressed body; Triton unpacks it to 200 MiB before any limit applies."""
    body = gzip.compress(b'{"inputs": [{"name": "TEXT", "data": ["' + b"a" * UNPACKED_BYTES + b'"]}]}', 6)
    return repeat(lambda: exchange(target, request(body, "Content-Encoding: gzip\r\n"), []), seconds, 3)


def one_byte_chunks(target: Target, seconds: float) -> Counter:
    """A body in chunks of one byte each."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode("ascii")
    return repeat(lambda: exchange(target, head + b"1\r\n[\r\n" * CHUNKS + b"0\r\n\r\n", []), seconds, 3)


def deep_json(target: Target, seconds: float) -> Counter:
    """Nested lists, and nested objects."""
    bodies = [b'{"TEXT": ' + b"[" * DEPTH + b"]" * DEPTH + b"}", b'{"a":' * DEPTH + b"1" + b"}" * DEPTH]
    turns = iter(range(1_000_000))
    return repeat(lambda: exchange(target, request(bodies[next(turns) % 2], path=GENERATE), []), seconds, 20)


def slow_clients(target: Target, seconds: float) -> Counter:
    """One byte a second on many connections, half of them from the first byte, half from the body."""
    sent = request(infer_bytes([target.text]))
    body_at = sent.index(b"\r\n\r\n") + 4
    turns = min(round(seconds), len(sent) - body_at)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(SLOW_CLIENTS)]
        begins = [0, body_at] * (SLOW_CLIENTS // 2)
        for connection, begin in zip(connections, begins):
            connection.sendall(sent[:begin])
        for turn in range(turns):
            for connection, begin in zip(connections, begins):
                with contextlib.suppress(ConnectionError):  # refused already
                    connection.sendall(sent[begin + turn : begin + turn + 1])
            time.sleep(1)
        return Counter(
            last_words(target, connection, sent[begin + turns :], not begin)
            for connection, begin in zip(connections, begins)
        )


def last_words(target: Target, connection: socket.socket, rest: bytes, may_be_refused: bool) -> str:
    """Send the rest of a request; returns the outcome.

    may_be_refused: Triton 2.51 answers 404 or 405 to a request whose first line comes in pieces, and closes.
    """
    try:
        with contextlib.suppress(ConnectionError):
            connection.sendall(rest)
        status, body = next(answers(connection))
    except TimeoutError:
        return "hung"
    except (OSError, StopIteration):
        return "closed" if may_be_refused else "wrong"
    if status in (404, 405) and may_be_refused:
        return "refused"
    return "answered" if status == 200 and class_ids(body) == [target.class_id] else "wrong"


def idle_connections(target: Target, seconds: float) -> Counter:
    """Open IDLE_CONNECTIONS without a request; then send one request on every fortieth."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE_CONNECTIONS + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))
    sent = request(infer_bytes([target.text]))
    outcomes: Counter = Counter()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(target.connect()) for _ in range(IDLE_CONNECTIONS)]
        time.sleep(seconds)
        for connection in connections[:: IDLE_CONNECTIONS // 50]:
            try:
                connection.sendall(sent)
                status, body = next(answers(connection))
                right = status == 200 and class_ids(body) == [target.class_id]
                outcomes["answered" if right else "wrong"] += 1
            except TimeoutError:
                outcomes["hung"] += 1
            except (OSError, StopIteration):
                outcomes["closed"] += 1
    return outcomes


def hang_ups(target: Target, seconds: float) -> Counter:
    """Clients that close after half a request, or after a whole one without reading the answer."""
    rng, sent = random.Random(3), request(infer_bytes([target.text]))

    def one() -> str:
        with target.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(sent[: rng.choice([rng.randrange(1, len(sent)), len(sent)])])
        time.sleep(HANG_UP_EVERY_S)
        return "closed"

    return repeat(one, seconds, 2000)


def pipelining(target: Target, seconds: float) -> Counter:
    """PIPELINED requests on one connection before the first answer. The answers must come in order."""
    one, other = request(infer_bytes([target.text])), request(infer_bytes([target.text, ""]))
    expected = [[target.class_id], [target.class_id, target.blank_class_id]] * (PIPELINED // 2)

    def burst() -> str:
        try:
            with target.connect() as connection:
                connection.sendall((one + other) * (PIPELINED // 2))
                stream = answers(connection)
                found = [next(stream) for _ in range(PIPELINED)]
        except TimeoutError:
            return "hung"
        except (OSError, StopIteration):
            return "closed"
        right = [(status, class_ids(body)) for status, body in found] == [(200, ids) for ids in expected]
        return "answered" if right else "wrong"

    return repeat(burst, seconds, 200)


def grpc_cancellations(target: Target, seconds: float) -> Counter:
    """Calls with a short deadline, and calls cancelled in flight."""
    rng = random.Random(5)
    outputs = [triton.InferRequestedOutput("CLASS_ID")]
    gone = ("DEADLINE_EXCEEDED", "CANCELLED")
    with triton.InferenceServerClient(target.address.grpc_url) as client:

        def one() -> str:
            inputs, results = [text_input([target.text] * rng.randint(1, 3))], []
            deadline = rng.choice([rng.uniform(0.0005, 0.12), None])
            call = client.async_infer(
                ENSEMBLE, inputs, lambda result, error: results.append((result, error)), outputs=outputs,
                client_timeout=deadline,
            )  # fmt: skip
            time.sleep(rng.uniform(0, 0.06))
            if deadline is None:
                call.cancel()
            end = time.monotonic() + ANSWER_LIMIT_S
            while not results:
                if time.monotonic() > end:
                    return "hung"
                time.sleep(0.001)
            result, error = results[0]
            if isinstance(error, InferenceServerException):
                return "closed" if any(word in f"{error.status()} {error}".upper() for word in gone) else "refused"
            return "answered" if set(result.as_numpy("CLASS_ID")[:, 0]) == {target.class_id} else "wrong"

        return repeat(one, seconds, 3000)


ATTACKS = (
    Attack("requests of 1 MiB of blanks", large_blanks),
    Attack("slow clients, a byte a second", slow_clients),
    Attack("idle connections", idle_connections),
    Attack("clients that hang up", hang_ups),
    Attack("HTTP pipelining", pipelining),
    Attack("gRPC cancellations and deadlines", grpc_cancellations),
    Attack("deep JSON", deep_json, may_restart=True),
    Attack("gzip that unpacks to 200 MiB", gzip_bomb, may_restart=True),
    Attack("200,000 chunks of one byte", one_byte_chunks, may_restart=True),
)
