"""The services that `compare` measures. All run at the same time, each in its own process, idle unless loaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_scripts.benchmarks import subprocesses
from build_scripts.benchmarks.http_load import Answers, load
from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.releases.models import serving_models
from build_scripts.serving.keep import inference
from build_scripts.serving.keep.shutdown import stop
from build_scripts.serving.start.installation import Installation
from build_scripts.serving.start.tritonserver import launch

START_LIMIT_S = 300.0
# Flask kinds that compute in fp32.
EXACT_KINDS = ("padded", "trimmed", "onnx")
INFER = f"/v2/models/{ENSEMBLE}/infer"


@dataclass(frozen=True)
class Service:
    """A service, the requests it takes and how to read its answers.

    body: the request for one text. body_of_many: the request for several, if the service takes them. exact: computes in
    fp32, so a different class id is an error. slow: takes so long for a text that it is measured less.
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

    def load(self, texts: Sequence[str], seconds: float, **how: Any) -> Answers:
        """One text a request. how: as in `http_load.load`."""
        return load(self.port, self.path, [self.body(text) for text in texts], seconds, **how)

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
    """A tritonserver on the repository, without a supervisor, whose probes would disturb the measurement.

    The models are put together beside the log.
    """
    address = Address("127.0.0.1", *subprocesses.free_ports(3))
    models = log.with_suffix("")
    shutil.rmtree(models, ignore_errors=True)
    models.mkdir(parents=True)
    log.unlink(missing_ok=True)
    repositories, _ = serving_models(repository, models)
    server = launch(installation, repositories, address, secrets.token_hex(16), log)
    try:
        subprocesses.wait_until(lambda: inference.probe(address.http_url, 2.0).healthy, server.poll, log, START_LIMIT_S)
        yield triton(name, address, server.process.pid, exact=exact)
    finally:
        stop(server)


def triton(name: str, address: Address, pid: int, *, exact: bool = True) -> Service:
    """The ensemble of a server that runs."""
    return Service(
        name,
        address.http_port,
        pid,
        INFER,
        body=lambda text: infer_body([text]),
        body_of_many=infer_body,
        exact=exact,
        class_id=lambda answer: output(answer, "CLASS_ID")[0],
        probabilities=lambda answer: output(answer, "PROBABILITIES"),
    )


def infer_body(texts: list[str], pairs: list[str] | None = None) -> dict:
    """The JSON of a request to `infer`. pairs: second texts, for a classifier of pairs."""
    inputs = {"TEXT": texts} if pairs is None else {"TEXT": texts, "TEXT_PAIR": pairs}
    return {
        "inputs": [
            {"name": name, "shape": [len(data), 1], "datatype": "BYTES", "data": data} for name, data in inputs.items()
        ]
    }


def output(answer: dict, name: str) -> list:
    return next(one["data"] for one in answer["outputs"] if one["name"] == name)
