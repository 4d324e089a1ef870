"""The services that `compare` measures, each in processes of its own, all alive at once and idle unless loaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from build_scripts.benchmarks import subprocesses
from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.serving.keep import health
from build_scripts.serving.keep.shutdown import stop
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.tritonserver import launch

START_LIMIT_S = 300.0
# Of the Flask kinds, those that compute in fp32.
EXACT_KINDS = ("padded", "trimmed", "onnx")
INFER = f"/v2/models/{ENSEMBLE}/infer"


@dataclass(frozen=True)
class Service:
    """Where texts go and what comes back. body: of a request for a text; class_id: from a parsed answer.

    body_of_many: of a request for several texts, where the service takes such. exact: whether it computes in fp32, so
    that another class id would be a mistake. slow: takes so long a text that it is measured on less.
    """

    name: str
    port: int
    pid: int
    path: str
    body: Callable[[str], dict]
    class_id: Callable[[dict], int]
    probabilities: Callable[[dict], list[float]]
    body_of_many: Callable[[list[str]], dict] | None = None
    exact: bool = True
    slow: bool = False

    def ask(self, texts: list[str]) -> list[dict]:
        """The parsed answer to every text, one request each. Raises ServingError if one is refused."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_LIMIT_S)
        answers = []
        with contextlib.closing(connection):
            for text in texts:
                body = json.dumps(self.body(text)).encode("utf-8")
                connection.request("POST", self.path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                said = response.read()
                if response.status != 200:
                    raise ServingError(f"{self.name} answered HTTP {response.status}: {said[:200]!r}")
                answers.append(json.loads(said))
        return answers


@contextlib.contextmanager
def flask(name: str, kind: str, checkpoint: Path, max_length: int, onnx: Path, log: Path) -> Iterator[Service]:
    """One of `flask_service.KINDS`."""
    (port,) = subprocesses.free_ports(1)
    arguments = ["--kind", kind, "--checkpoint", str(checkpoint), "--max-length", str(max_length)]
    arguments += ["--onnx", str(onnx), "--port", str(port)]
    with subprocesses.running("build_scripts.benchmarks.flask_service", arguments, log) as process:
        subprocesses.wait_until(lambda: subprocesses.listens(port), process.poll, log, START_LIMIT_S)
        yield Service(
            name,
            port,
            process.pid,
            "/classify",
            body=lambda text: {"text": text},
            class_id=lambda answer: answer["class_id"],
            probabilities=lambda answer: answer["probabilities"],
            exact=kind in EXACT_KINDS,
            slow=kind == "padded",
        )


@contextlib.contextmanager
def ensemble(
    name: str, installation: Installation, repository: Path, log: Path, *, exact: bool = True
) -> Iterator[Service]:
    """A tritonserver on the repository, without a supervisor: its probes would disturb whoever is measured."""
    address = Address("127.0.0.1", *subprocesses.free_ports(3))
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    server = launch(installation, [repository], address, secrets.token_hex(16), log)
    try:
        subprocesses.wait_until(lambda: health.probe(address.http_url, 2.0).healthy, server.poll, log, START_LIMIT_S)
        yield Service(
            name,
            address.http_port,
            server.process.pid,
            INFER,
            body=lambda text: infer_body([text]),
            body_of_many=infer_body,
            exact=exact,
            class_id=lambda answer: output(answer, "CLASS_ID")[0],
            probabilities=lambda answer: output(answer, "PROBABILITIES"),
        )
    finally:
        stop(server)


def infer_body(texts: list[str]) -> dict:
    return {"inputs": [{"name": "TEXT", "shape": [len(texts), 1], "datatype": "BYTES", "data": texts}]}


def output(answer: dict, name: str) -> list:
    return next(one["data"] for one in answer["outputs"] if one["name"] == name)
