"""Clients of a balanced service, each with one connection and without any retry: HTTPS keep-alive, and gRPC.

    python -m tests.support.replica_load --kind grpc --host 192.0.2.1 --port 8443 --ca c.pem --clients 4 --requests 1000

Sends at least that number of requests, and goes on until its standard input is closed; then prints one JSON object: how
many were answered with the expected class id, and why the others were not. Bounded in time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from build_scripts.benchmarks.services import infer_body
from tests.support.waiting import HANG_S

PATH = "/v2/models/text_classifier/infer"
TEXT, CLASS_ID = "Midfielder scores twice as champions win away", 7


def http_client(host: str, port: int, ca: str, texts: int):
    """A function that sends one request over a kept connection; returns the first class id, raises what went wrong.

    texts: number in a request.
    """
    context = ssl.create_default_context(cafile=ca)
    body = json.dumps(infer_body([TEXT] * texts))
    connection = http.client.HTTPSConnection(host, port, timeout=HANG_S, context=context)

    def ask() -> int:
        try:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        except Exception:
            connection.close()  # the next request opens another
            raise
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {content[:100].decode(errors='replace')}")
        outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
        return outputs["CLASS_ID"][0]

    return ask


def grpc_client(host: str, port: int, ca: str, texts: int):
    """The same over gRPC, with one text. Each client has a separate channel, which does not retry."""
    assert texts == 1
    import grpc
    import numpy as np
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(
        f"{host}:{port}",
        ssl=True,
        creds=grpc.ssl_channel_credentials(Path(ca).read_bytes()),
        channel_args=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)],
    )
    tensor = triton.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[TEXT.encode()]], dtype=np.object_))

    def ask() -> int:
        return int(client.infer("text_classifier", [tensor], client_timeout=HANG_S).as_numpy("CLASS_ID")[0, 0])

    return ask


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=("http", "grpc"))
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--ca")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--texts", type=int, default=1, help="texts of a request")
    options = parser.parse_args()
    make = {"http": http_client, "grpc": grpc_client}[options.kind]
    deadline = time.monotonic() + HANG_S
    stopped, lock, found = threading.Event(), threading.Lock(), Counter()

    def work() -> None:
        ask = make(options.host, options.port, options.ca, options.texts)
        while time.monotonic() < deadline and not (stopped.is_set() and found.total() >= options.requests):
            try:
                answer = ask()
                reason = "" if answer == CLASS_ID else f"class id {answer}"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"[:200]
                time.sleep(0.05)
            with lock:
                found[reason] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(options.clients)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopped.set()
    for thread in threads:
        thread.join(HANG_S)
    print(json.dumps({"answered": found.pop("", 0), "failed": dict(found)}))


if __name__ == "__main__":
    main()
