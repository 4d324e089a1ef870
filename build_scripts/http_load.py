"""A closed-loop HTTP client: so many threads, each with one open connection, each sending as soon as it was answered.

    python -m build_scripts.http_load --port 8000 --path /classify --bodies bodies.json --concurrency 4 --seconds 3

Prints JSON: `seconds` until the last answer, and `latencies_ms`. Runs as a process of its own, so that its work does
not wait for the caller's. Knows nothing of what it sends; the same client loads every service that is compared.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIMEOUT_S = 300.0


@dataclass
class Load:
    """What one run sends, and what came back. bodies: sent in order, over and over, whichever thread is free."""

    port: int
    path: str
    bodies: Sequence[bytes]
    latencies_ms: list[float] = field(default_factory=list)
    last_answer: float = 0.0
    failure: str = ""
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, concurrency: int, seconds: float) -> float:
        """Returns the seconds from the first request to the last answer; none is sent after `seconds`."""
        barrier = threading.Barrier(concurrency + 1)
        threads = [threading.Thread(target=self._send, args=(barrier, seconds)) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        barrier.wait()
        start = time.perf_counter()
        for thread in threads:
            thread.join()
        return self.last_answer - start

    def _send(self, barrier: threading.Barrier, seconds: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.connect()
        barrier.wait()
        end = time.perf_counter() + seconds
        try:
            while not self.failure and time.perf_counter() < end:
                with self.lock:
                    body = self.bodies[self.sent % len(self.bodies)]
                    self.sent += 1
                start = time.perf_counter()
                connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                now = time.perf_counter()
                if answer.status != 200:
                    self.failure = f"HTTP {answer.status}: {text[:200].decode('utf-8', 'replace')}"
                with self.lock:
                    self.latencies_ms.append(1e3 * (now - start))
                    self.last_answer = max(self.last_answer, now)
        except (OSError, http.client.HTTPException) as error:
            self.failure = repr(error)
        finally:
            connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Load an HTTP service and print how long each answer took.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON list of request bodies")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    bodies = [json.dumps(body).encode("utf-8") for body in json.loads(arguments.bodies.read_text(encoding="utf-8"))]
    load = Load(arguments.port, arguments.path, bodies)
    seconds = load.run(arguments.concurrency, arguments.seconds)
    if load.failure:
        print(load.failure, file=sys.stderr)
        return 1
    json.dump({"seconds": seconds, "latencies_ms": load.latencies_ms}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
