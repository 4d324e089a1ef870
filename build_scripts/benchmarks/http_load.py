"""An HTTP client with so many open connections, each sending its next request once it was answered.

At once (a closed loop), or, if a rate is given, when its turn comes: turns are spread evenly, and those that nobody
could take within LATE_S are not made up for.

`load` runs it as a process of its own, so that its work does not wait for the caller's, in one thread, so that it takes
little from whoever is measured. It knows nothing of what it sends; the same client loads every service that is
compared, and floods ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import uvloop

from build_scripts.core.errors import ServingError

# After the last request was sent, answers are waited for this long.
TIMEOUT_S = 60.0
# The event loop's timers are late by a millisecond and more.
LATE_S = 0.02


@dataclass(frozen=True)
class Answers:
    """seconds: to the last answer. latencies_ms: by HTTP status, each sorted. unanswered: requests."""

    seconds: float
    latencies_ms: dict[int, list[float]]
    unanswered: int

    @property
    def rate(self) -> float:
        """Requests a second that were answered with 200."""
        return len(self.latencies_ms.get(200, [])) / self.seconds


def load(
    port: int, path: str, bodies: Sequence[object], concurrency: int, seconds: float, rate: float = math.inf
) -> Answers:
    """Post JSON bodies for so many seconds, `rate` requests/s at most. Raises ServingError if the client fails."""
    command = [sys.executable, "-m", "build_scripts.benchmarks.http_load", "--port", str(port), "--path", path]
    command += ["--concurrency", str(concurrency), "--seconds", str(seconds), "--rate", str(rate)]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True)
    if done.returncode != 0:
        raise ServingError(f"the load client failed on port {port}: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    latencies = {int(status): sorted(values) for status, values in answer["latencies_ms"].items()}
    return Answers(answer["seconds"], latencies, answer["unanswered"])


class Run:
    """What one run sends, and what came back. bodies: sent in order, over and over, whichever connection is free."""

    def __init__(self, port: int, path: str, bodies: Sequence[bytes], rate: float):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
        self.port = port
        self.interval = 1 / rate
        self.turn = 0.0
        self.requests = [f"{head}{len(body)}\r\n\r\n".encode("ascii") + body for body in bodies]
        self.latencies_ms: dict[int, list[float]] = defaultdict(list)
        self.sent = self.answered = 0
        self.end = self.last_answer = 0.0

    async def run(self, concurrency: int, seconds: float) -> float:
        """Each connection sends once it is open; after `seconds` none does. Returns the seconds to the last answer."""
        connect = asyncio.get_running_loop().create_connection
        start = self.last_answer = time.perf_counter()
        self.end = start + seconds
        connections = []
        for _ in range(concurrency):
            _, connection = await connect(lambda: Connection(self), "127.0.0.1", self.port)
            connection.send_next()
            connections.append(connection)
        done, _ = await asyncio.wait([connection.done for connection in connections], timeout=seconds + TIMEOUT_S)
        for future in done:
            future.result()  # raises what ended the connection
        return self.last_answer - start

    def seconds_to_turn(self) -> float:
        """Until the next request is due; whoever asks is the one to send it."""
        now = time.perf_counter()
        turn = max(self.turn, now - LATE_S)
        self.turn = turn + self.interval
        return max(turn - now, 0.0)


class Connection(asyncio.Protocol):
    """Sends its next request when the one before was answered; `done` once no more are to be sent.

    A protocol, because asyncio's streams switch tasks twice an answer, and that is taken from the server's cores.
    """

    def __init__(self, run: Run):
        self.run = run
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.received = b""
        self.began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        if wait := self.run.seconds_to_turn():
            asyncio.get_running_loop().call_later(wait, self.send)
        else:
            self.send()

    def send(self) -> None:
        self.began = time.perf_counter()
        if self.began >= self.run.end:
            self.done.set_result(None)
            self.transport.close()
            return
        self.transport.write(self.run.requests[self.run.sent % len(self.run.requests)])
        self.run.sent += 1

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, complete, body = self.received.partition(b"\r\n\r\n")
        if not complete:
            return
        # With the line break: Inference-Header-Content-Length ends the same.
        _, found, rest = head.lower().partition(b"\r\ncontent-length:")
        if not found:
            self.fail(ValueError(f"an answer without Content-Length: {head[:200]!r}"))
        elif len(body) >= int(rest.split(b"\r\n", 1)[0]):
            self.received = b""
            self.run.last_answer = time.perf_counter()
            self.run.answered += 1
            status = int(head.split(b" ", 2)[1])
            self.run.latencies_ms[status].append(1e3 * (self.run.last_answer - self.began))
            self.send_next()

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(error or ConnectionError("the server closed a connection"))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.transport.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Post the JSON list of bodies on stdin; print Answers as JSON.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    arguments = parser.parse_args()
    bodies = [json.dumps(body).encode("utf-8") for body in json.load(sys.stdin)]
    run = Run(arguments.port, arguments.path, bodies, arguments.rate)
    try:
        seconds = uvloop.run(run.run(arguments.concurrency, arguments.seconds))
    except (OSError, ValueError) as error:
        print(repr(error), file=sys.stderr)
        return 1
    answer = {"seconds": seconds, "latencies_ms": run.latencies_ms, "unanswered": run.sent - run.answered}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
