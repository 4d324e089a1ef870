"""An HTTP server that records the headers of each request and answers 200.

python -m tests.support.echo 8000 seen.txt
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.http_stand_in import Reply, Request, StandIn


def record(request: Request) -> Reply:
    with Path(sys.argv[2]).open("a", encoding="utf-8") as seen:
        seen.write(f"{request.line}\n{request.headers}")
    return Reply()


if __name__ == "__main__":
    StandIn(record, ("0.0.0.0", int(sys.argv[1]))).serve_forever()
