"""An HTTP load client: a closed loop over a number of connections, or Poisson arrivals in an open loop.

Closed loop: each connection sends its next request `pause` seconds after the last answer. Open loop: requests arrive at
random at a mean rate, whether or not earlier ones are answered, and latency counts from the scheduled arrival. So a
stall of the server delays every request that arrives during it, in the figures as for real clients.

`load` runs the client as a separate process, so that it does not wait for the caller, in one thread for the loop, so
that it takes little CPU from the server. The same client loads every service and floods ours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import uvloop

from build_scripts.core.errors import ServingError

# Patience after the last request was sent.
TIMEOUT_S = 60.0
# Connections of an open loop, opened on demand. Further requests wait in the client; their latency grows all the same.
MOST_CONNECTIONS = 256


@dataclass(frozen=True)
class Answers:
    """seconds: to the last answer. latencies_ms: by HTTP status, each sorted. unanswered: number of requests."""

    seconds: float
    latencies_ms: dict[int, list[float]]
    unanswered: int

    @property
    def rate(self) -> float:
        """Requests a second that were answered with 200."""
        return len(self.latencies_ms.get(200, [])) / self.seconds

    def all_ok(self, service: str) -> list[float]:
        """The latencies, if every request was answered with 200. Raises ServingError otherwise."""
        if self.unanswered or set(self.latencies_ms) != {200}:
            counts = {status: len(values) for status, values in self.latencies_ms.items()}
            raise ServingError(f"{service} failed under load: {counts}, {self.unanswered} without an answer")
        return self.latencies_ms[200]


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted values; share from 0 to 1. 0 if there are none."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0


def load(
    port: int,
    path: str,
    bodies: Sequence[object],
    seconds: float,
    *,
    concurrency: int = 1,
    pause: float = 0.0,
    rate: float = 0.0,
) -> Answers:
    """Post JSON bodies for `seconds`. rate: mean arrivals/s of an open loop; 0: closed loop. Raises ServingError."""
    command = [sys.executable, "-m", "build_scripts.benchmarks.http_load", "--port", str(port), "--path", path]
    command += ["--seconds", str(seconds), "--concurrency", str(concurrency), "--pause", str(pause)]
    done = subprocess.run([*command, "--rate", str(rate)], input=json.dumps(bodies), capture_output=True, text=True)
    if done.returncode != 0:
        raise ServingError(f"the load client failed on port {port}: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    latencies = {int(status): sorted(values) for status, values in answer["latencies_ms"].items()}
    return Answers(answer["seconds"], latencies, answer["unanswered"])


def poisson(rate: float, seconds: float, seed: int = 11) -> Iterator[float]:
    """Arrival times within `seconds`, at `rate` a second on average."""
    source, now = random.Random(seed), 0.0
    while (now := now + source.expovariate(rate)) < seconds:
        yield now


class Run:
    """Requests of one run and their results. bodies: sent in order, again and again."""

    def __init__(self, port: int, path: str, bodies: Sequence[bytes]):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
        self.port = port
        self.requests = [f"{head}{len(body)}\r\n\r\n".encode("ascii") + body for body in bodies]
        self.latencies_ms: dict[int, list[float]] = defaultdict(list)
        # Scheduled times of requests that no connection has sent yet.
        self.backlog: deque[float] = deque()
        self.connections: list[Connection] = []
        self.sent = self.answered = 0
        self.last_answer = 0.0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        self.connections.append(connection)
        return connection

    async def closed_loop(self, concurrency: int, seconds: float, pause: float) -> None:
        connections = [await self.connect() for _ in range(concurrency)]
        end = time.perf_counter() + seconds

        async def client(connection: Connection, delay: float) -> None:
            await asyncio.sleep(delay)
            while time.perf_counter() < end:
                await connection.ask(time.perf_counter())
                if pause:
                    await asyncio.sleep(pause)

        # The first requests of all connections are spread over one pause.
        clients = [client(one, pause * place / concurrency) for place, one in enumerate(connections)]
        await asyncio.gather(*clients)

    async def open_loop(self, rate: float, seconds: float) -> None:
        loop, start = asyncio.get_running_loop(), time.perf_counter()
        idle, tasks = [await self.connect()], set[asyncio.Task]()
        over = asyncio.Event()

        async def work() -> None:
            connection = idle.pop() if idle else await self.connect()
            while self.backlog:
                await connection.ask(self.backlog.popleft())
            idle.append(connection)

        def finish(task: asyncio.Task) -> None:
            tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self.fail(error)

        def arrive(scheduled: float) -> None:
            self.backlog.append(scheduled)
            if len(tasks) < MOST_CONNECTIONS:
                tasks.add(task := loop.create_task(work()))
                task.add_done_callback(finish)

        def schedule() -> None:
            """In a thread, because the event loop's timers are late by a millisecond and more."""
            with contextlib.suppress(RuntimeError):  # the loop is closed after a failure
                for moment in poisson(rate, seconds):
                    time.sleep(max(0.0, start + moment - time.perf_counter()))
                    loop.call_soon_threadsafe(arrive, start + moment)
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=schedule, daemon=True).start()
        await over.wait()
        await asyncio.gather(*tasks)

    def fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    async def run(self, concurrency: int, seconds: float, pause: float, rate: float) -> float:
        """Returns the seconds to the last answer. Raises the error that ended a connection."""
        start = self.last_answer = time.perf_counter()
        loop = self.open_loop(rate, seconds) if rate else self.closed_loop(concurrency, seconds, pause)
        work = asyncio.ensure_future(loop)
        await asyncio.wait([work, self.failed], timeout=seconds + TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        try:
            for one in (self.failed, work):
                if one.done():
                    one.result()
        finally:
            self.failed.cancel()
            for connection in self.connections:
                connection.transport.abort()
        return self.last_answer - start


class Connection(asyncio.Protocol):
    """One request at a time. A protocol, because asyncio's streams cost the server's cores two task switches more."""

    def __init__(self, run: Run):
        self.run = run
        self.received = b""
        self.answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    async def ask(self, scheduled: float) -> None:
        """Send the next request and wait for its answer; latency counts from `scheduled`."""
        self.scheduled = scheduled
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(self.run.requests[self.run.sent % len(self.run.requests)])
        self.run.sent += 1
        await self.answer

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, complete, body = self.received.partition(b"\r\n\r\n")
        if not complete:
            return
        # With the line break, because Inference-Header-Content-Length has the same ending.
        _, found, rest = head.lower().partition(b"\r\ncontent-length:")
        if not found:
            self.run.fail(ValueError(f"an answer without Content-Length: {head[:200]!r}"))
        elif len(body) >= int(rest.split(b"\r\n", 1)[0]) and self.answer:
            self.received = b""
            self.run.last_answer = time.perf_counter()
            self.run.answered += 1
            status = int(head.split(b" ", 2)[1])
            self.run.latencies_ms[status].append(1e3 * (self.run.last_answer - self.scheduled))
            self.answer.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.run.fail(error or ConnectionError("the server closed a connection"))


async def client(arguments: argparse.Namespace, bodies: list[bytes]) -> dict:
    run = Run(arguments.port, arguments.path, bodies)
    seconds = await run.run(arguments.concurrency, arguments.seconds, arguments.pause, arguments.rate)
    unanswered = run.sent - run.answered + len(run.backlog)
    return {"seconds": seconds, "latencies_ms": run.latencies_ms, "unanswered": unanswered}


def main() -> int:
    parser = argparse.ArgumentParser(description="Post the JSON list of bodies on stdin; print Answers as JSON.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--concurrency", type=int, default=1)
    for name in ("--seconds", "--pause", "--rate"):
        parser.add_argument(name, type=float, required=True)
    arguments = parser.parse_args()
    bodies = [json.dumps(body).encode("utf-8") for body in json.load(sys.stdin)]
    try:
        answer = uvloop.run(client(arguments, bodies))
    except (OSError, ValueError) as error:
        print(repr(error), file=sys.stderr)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
