"""A closed-loop HTTP client: so many open connections, each sending its next request as soon as it was answered.

`load` runs it as a process of its own, so that its work does not wait for the caller's, in one thread, so that it takes
little from whoever is measured. It knows nothing of what it sends; the same client loads every service that is
compared, and floods ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from build_scripts.settings import ServingError

# After the last request was sent, answers are waited for this long.
TIMEOUT_S = 60.0


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


def load(port: int, path: str, bodies: Sequence[object], concurrency: int, seconds: float) -> Answers:
    """Post JSON bodies for so many seconds. Raises ServingError if the client fails."""
    command = [sys.executable, "-m", "build_scripts.http_load", "--port", str(port), "--path", path]
    command += ["--concurrency", str(concurrency), "--seconds", str(seconds)]
    done = subprocess.run(command, input=json.dumps(bodies), capture_output=True, text=True)
    if done.returncode != 0:
        raise ServingError(f"the load client failed on port {port}: {done.stderr.strip()[-300:]}")
    answer = json.loads(done.stdout)
    latencies = {int(status): sorted(values) for status, values in answer["latencies_ms"].items()}
    return Answers(answer["seconds"], latencies, answer["unanswered"])


class Client:
    """What one run sends, and what came back. bodies: sent in order, over and over, whichever connection is free."""

    def __init__(self, port: int, path: str, bodies: Sequence[bytes]):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
        self.port = port
        self.requests = [f"{head}{len(body)}\r\n\r\n".encode("ascii") + body for body in bodies]
        self.latencies_ms: dict[int, list[float]] = defaultdict(list)
        self.sent = self.answered = 0
        self.last_answer = 0.0

    async def run(self, concurrency: int, seconds: float) -> float:
        """Returns the seconds from the first request to the last answer; none is sent after `seconds`."""
        connections = [await asyncio.open_connection("127.0.0.1", self.port) for _ in range(concurrency)]
        start = self.last_answer = time.perf_counter()
        senders = [asyncio.create_task(self._send(*connection, start + seconds)) for connection in connections]
        done, unanswered = await asyncio.wait(senders, timeout=seconds + TIMEOUT_S)
        for task in unanswered:
            task.cancel()
        for task in done:
            task.result()  # raises what the task raised
        return self.last_answer - start

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, end: float) -> None:
        while time.perf_counter() < end:
            request = self.requests[self.sent % len(self.requests)]
            self.sent += 1
            start = time.perf_counter()
            writer.write(request)
            status = await read_answer(reader)
            self.last_answer = time.perf_counter()
            self.answered += 1
            self.latencies_ms[status].append(1e3 * (self.last_answer - start))
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, rest = head.partition(b"content-length:")
    if not found:
        raise ValueError(f"an answer without Content-Length: {head[:200]!r}")
    await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    return int(head.split(b" ", 2)[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Post the JSON list of bodies on stdin; print Answers as JSON.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    bodies = [json.dumps(body).encode("utf-8") for body in json.load(sys.stdin)]
    client = Client(arguments.port, arguments.path, bodies)
    try:
        seconds = asyncio.run(client.run(arguments.concurrency, arguments.seconds))
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        print(repr(error), file=sys.stderr)
        return 1
    answer = {"seconds": seconds, "latencies_ms": client.latencies_ms, "unanswered": client.sent - client.answered}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
