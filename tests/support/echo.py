"""A stand-in for a replica: records each request's line and headers, and answers 200.

    python -m tests.support.echo 8000 seen.txt --slow-check 5

A health check is a request whose body holds "health". It can be answered late or with another status.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tests.support.http_stand_in import Reply, Request, StandIn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("seen", type=Path)
    parser.add_argument("--slow-check", type=float, default=0.0, help="seconds before a health check is answered")
    parser.add_argument("--check-status", type=int, default=200)
    parser.add_argument("--slow-answer", type=float, default=0.0, help="seconds before any other request is answered")
    options = parser.parse_args()

    def answer(request: Request) -> Reply:
        is_check = b"health" in request.body
        with options.seen.open("a", encoding="utf-8") as seen:
            seen.write(f"{request.line}\n{request.headers}")
        time.sleep(options.slow_check if is_check else options.slow_answer)
        return Reply(options.check_status if is_check else 200)

    StandIn(answer, ("0.0.0.0", options.port)).serve_forever()


if __name__ == "__main__":
    main()
