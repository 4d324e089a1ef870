"""Clients that judge every answer by the releases that it may come from."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.options import BuildOptions
from build_scripts.serving.client import text_input
from build_scripts.serving.swap.model_control import Control
from tests.support.oracle import HuggingFace
from tests.support.servers import RunningServer
from tests.support.waiting import HANG_S, wait_for

# Both vocabularies know words of each, under different ids.
TEXTS = ["stocks fall as banks report", "中文 and english", "字学一丁 a b c", "the school opens", "丁七万丈三上下不与"]
IDS = [[2, 40, 41, 42, 3], [2, 99, 17, 3, 0]]
TOLERANCE = 1e-3
KINDS = ("keep-alive", "new connection", "gRPC", "classifier alone")
# Timeout for an answer that takes milliseconds on an idle machine.


class Release:
    """A checkpoint, and what plain Hugging Face answers with it."""

    def __init__(self, directory: Path):
        self.options = BuildOptions(model=str(directory), precision="fp32")
        self.oracle = HuggingFace(directory, max_length=128)
        config = self.oracle.model.config
        self.labels = [config.id2label[index] for index in range(config.num_labels)]
        self.expected = self.oracle.probabilities(TEXTS).numpy()

    def classify_ids(self) -> np.ndarray:
        """What the classifier alone answers to IDS, in which 0 is padding."""
        import torch

        ids = torch.tensor(IDS)
        with torch.inference_mode():
            return self.oracle.model(input_ids=ids, attention_mask=(ids != 0).long()).logits.softmax(-1).numpy()


class Clients:
    """Four kinds of clients that send requests until they are told to stop, and judge every answer.

    releases: the ones that may answer. name: the classifier's.
    """

    def __init__(self, server: RunningServer, releases: dict[str, Release], name: str = ENSEMBLE):
        self.server = server
        self.models = Models(name)
        self.releases = releases
        self.alone = {name: one.classify_ids() for name, one in releases.items()}
        self.answers: Counter = Counter()
        self.wrong: list[tuple] = []
        self.stop = threading.Event()
        kinds = [self.keep_alive, self.keep_alive, self.new_connections, self.new_connections, self.grpc, self.grpc]
        self.threads = [threading.Thread(target=self.go_on, args=(kind,)) for kind in [*kinds, self.ids, self.ready]]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def await_answers(self, release: str) -> None:
        """Wait until each kind of client has had another answer of a release."""
        before = Counter(self.answers)
        wait_for(
            lambda: all(self.answers[kind, release] > before[kind, release] for kind in KINDS),
            f"no answer of {release}: {self.answers} {self.wrong}",
        )

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def go_on(self, kind: Callable[[], Iterator[None]]) -> None:
        while not self.stop.is_set():
            try:
                for _ in kind():
                    if self.stop.wait(0.05):  # some load, and cores left for the releases
                        break
            except Exception as error:  # whatever it is, it is a failed request, and the test will show it
                self.wrong.append((kind.__name__, repr(error)))

    def keep_alive(self) -> Iterator[None]:
        with contextlib.closing(self.connect()) as connection:
            for index in cycle(range(len(TEXTS))):
                self.infer_http("keep-alive", connection, index)
                yield

    def new_connections(self) -> Iterator[None]:
        for index in cycle(range(len(TEXTS))):
            with contextlib.closing(self.connect()) as connection:
                self.infer_http("new connection", connection, index)
            yield

    def grpc(self) -> Iterator[None]:
        outputs = [
            triton.InferRequestedOutput("CLASS_ID"),
            triton.InferRequestedOutput("PROBABILITIES", class_count=99),
        ]
        with triton.InferenceServerClient(self.server.grpc) as client:
            for index in cycle(range(len(TEXTS))):
                result = client.infer(self.models.ensemble, [text_input([TEXTS[index]])], outputs=outputs)
                best = [text.decode().split(":", 2) for text in result.as_numpy("PROBABILITIES")[0]]
                best.sort(key=lambda parts: int(parts[1]))
                self.judge(
                    "gRPC", index, int(result.as_numpy("CLASS_ID")[0, 0]),
                    [float(score) for score, _, _ in best], [label for _, _, label in best],
                )  # fmt: skip
                yield

    def ids(self) -> Iterator[None]:
        """A client of the classifier alone, as Triton BERT deployments have them."""
        rows = np.array(IDS)
        tensors = [triton.InferInput(f"INPUT__{index}", rows.shape, "INT64") for index in range(2)]
        tensors[0].set_data_from_numpy(rows)
        tensors[1].set_data_from_numpy((rows != 0).astype(np.int64))
        with triton.InferenceServerClient(self.server.grpc) as client:
            while True:
                found = client.infer(self.models.classifier, tensors).as_numpy("OUTPUT__1")
                names = [name for name, rows in self.alone.items() if close(found, rows)]
                self.count("classifier alone", names, found)
                yield

    def ready(self) -> Iterator[None]:
        """What a load balancer asks."""
        while True:
            with urllib.request.urlopen(f"{self.server.http}/v2/health/ready", timeout=HANG_S):
                yield

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            self.server.address.client_host, self.server.address.http_port, timeout=HANG_S
        )

    def infer_http(self, kind: str, connection: http.client.HTTPConnection, index: int) -> None:
        body = infer_body([TEXTS[index]])
        connection.request("POST", f"/v2/models/{self.models.ensemble}/infer", json.dumps(body))
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            self.wrong.append((kind, response.status, content))
            return
        outputs = {output["name"]: output["data"] for output in json.loads(content)["outputs"]}
        self.judge(kind, index, outputs["CLASS_ID"][0], outputs["PROBABILITIES"])

    def judge(self, kind: str, index: int, class_id: int, row: list[float], labels: list[str] | None = None) -> None:
        """An answer must be one release's in all its parts."""
        names = [
            name
            for name, one in self.releases.items()
            if close(row, one.expected[index])
            and class_id == int(one.expected[index].argmax())
            and labels in (None, one.labels)
        ]
        self.count(kind, names, (index, class_id, row, labels))

    def count(self, kind: str, names: list[str], found: object) -> None:
        if len(names) == 1:
            self.answers[kind, names[0]] += 1
        else:
            self.wrong.append((kind, "an answer of no release", found))


def close(found: object, expected: np.ndarray) -> bool:
    return np.shape(found) == np.shape(expected) and bool(np.allclose(found, expected, atol=TOLERANCE))


def answering(server: RunningServer, releases: dict[str, Release]) -> str:
    """The name of the release that answers, in all its parts."""
    clients = Clients(server, releases)
    with contextlib.closing(clients.connect()) as connection:
        for index in range(len(TEXTS)):
            clients.infer_http("once", connection, index)
    assert not clients.wrong
    assert len(clients.answers) == 1
    return next(iter(clients.answers))[1]


def staged_models(port: int) -> list[str]:
    with Control(port) as control:
        names = {path.name for path in Path(control.state.staging).iterdir()}
        return sorted(names - set(Models().all))
