"""Ask a classifier for many answers: a running server over gRPC, or a release on the disk in this process.

Both give the same batches in the order of the texts, and hold a few batches at a time.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, TOKENIZER
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases.store import read_manifest
from build_scripts.serving.client import ALL_CLASSES, Text, connect, explain, inputs, text_input
from build_scripts.serving.start.arguments import Tls

# Texts a request: the server's largest batch. Requests in flight: enough to keep the classifier busy.
BATCH_SIZE, IN_FLIGHT = 64, 6
# A request closes before it holds more bytes of text, of the 1 MiB that the server takes.
BATCH_BYTES = 1 << 19
# Deadline of one request, and how long a server may be away (restarting, overloaded) before the run gives up.
REQUEST_S, AWAY_S = 120.0, 180.0


@dataclass(frozen=True)
class Batch:
    """Answers to consecutive texts.

    class_ids: (n,) int64. probabilities: (n, labels) float32. truncated: (n,) bool. seconds: of the request.
    """

    class_ids: np.ndarray
    probabilities: np.ndarray
    truncated: np.ndarray
    seconds: float


class Source(Protocol):
    """A classifier that can be asked. described: for reports."""

    described: str
    labels: list[str]
    multi_label: bool

    def answers(self, texts: Iterable[Text]) -> Iterator[Batch]:
        """Batches of answers in the order of the texts."""


class Served:
    """The classifier of a running server. It may restart: requests are then sent again for up to AWAY_S."""

    def __init__(self, url: str, name: str = ENSEMBLE, tls: Tls = Tls()):  # noqa: B008 (frozen)
        self.url = url
        self.name = name
        self.tls = tls
        self.described = f"{name} at {url}"
        with connect(url, tls) as client:
            named = self._ask(client, [text_input(["labels"])], classes=ALL_CLASSES, away_s=0)
            sums = self._ask(client, inputs(["labels", "one", "another text, longer than the others"]))[1].sum(1)
        ordered = sorted((one.decode("utf-8").split(":", 2) for one in named[1][0]), key=lambda part: int(part[1]))
        self.labels = [label for _, _, label in ordered]
        refuse_score(self)
        # Softmax sums to 1 for every text; sigmoids do so by chance only.
        self.multi_label = bool(np.abs(sums - 1).max() > 1e-2)

    def answers(self, texts: Iterable[Text]) -> Iterator[Batch]:
        with connect(self.url, self.tls) as client, ThreadPoolExecutor(IN_FLIGHT) as pool:
            running: deque[Future[Batch]] = deque()
            for batch in batches(texts):
                running.append(pool.submit(self._batch, client, batch))
                if len(running) > IN_FLIGHT:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()

    def _batch(self, client: triton.InferenceServerClient, batch: list[Text]) -> Batch:
        began = time.monotonic()
        class_ids, probabilities, truncated = self._ask(client, inputs(batch))
        return Batch(class_ids[:, 0], probabilities, truncated[:, 0], time.monotonic() - began)

    def _ask(
        self, client: triton.InferenceServerClient, tensors: list, classes: int = 0, away_s: float = AWAY_S
    ) -> list[np.ndarray]:
        """CLASS_ID, PROBABILITIES, TRUNCATED of one request; sent again while the server restarts or is overloaded."""
        outputs = [
            triton.InferRequestedOutput("CLASS_ID"),
            triton.InferRequestedOutput("PROBABILITIES", class_count=classes),
            triton.InferRequestedOutput("TRUNCATED"),
        ]
        deadline, pause = time.monotonic() + away_s, 0.1
        while True:
            try:
                result = client.infer(self.name, tensors, outputs=outputs, client_timeout=REQUEST_S)
                return [result.as_numpy(output.name()) for output in outputs]
            except InferenceServerException as error:
                # UNAVAILABLE: it restarts, or too many requests wait. CANCELLED: it ended in mid-request.
                away = any(code in str(error.status()) for code in ("UNAVAILABLE", "CANCELLED"))
                if not away or time.monotonic() > deadline:
                    raise ServingError(explain(error, self.url)) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)


class InProcess:
    """A release on the disk, computed in this process: the same tokenizer.json and model.pt that Triton would load."""

    def __init__(self, release: Path):
        import torch

        # The server's own tokenizer code. Its modules import each other by their bare names.
        sys.path.insert(0, str(SOURCE_REPOSITORY / TOKENIZER / "1"))
        from encoder import Encoder

        manifest = read_manifest(release)
        self.described = f"release {manifest['release']} of {manifest['checkpoint']}"
        self.labels = list(manifest["labels"])
        refuse_score(self)
        self.multi_label = bool(manifest["multi_label"])
        self.encoder = Encoder(release / "tokenizer.json")
        self.model = torch.jit.load(str(release / "model.pt"), map_location="cpu").eval()

    def answers(self, texts: Iterable[Text]) -> Iterator[Batch]:
        import torch

        for batch in batches(texts):
            began = time.monotonic()
            rows = self.encoder.outputs(self.encoder.tokenize(batch))
            ids, mask = (torch.from_numpy(rows[name]) for name in ("INPUT_IDS", "ATTENTION_MASK"))
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                class_ids, probabilities = self.model(ids, mask)
            seconds = time.monotonic() - began
            yield Batch(class_ids[:, 0].numpy(), probabilities.float().numpy(), rows["TRUNCATED"][:, 0], seconds)


def refuse_score(source: Served | InProcess) -> None:
    """Raise ServingError for a model with one label: every text has class id 0, so none is right or wrong."""
    if len(source.labels) == 1:
        raise ServingError(
            f"{source.described} gives a score and no classes; expected a classifier with at least 2 labels. "
            "`make classify FILE=…` prints a score for each line"
        )


def batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Cut texts into requests of BATCH_SIZE texts and BATCH_BYTES at most; either single texts or pairs in each."""
    batch: list[Text] = []
    size = 0
    for text in texts:
        own = sum(len(part.encode("utf-8", "surrogatepass")) for part in ([text] if isinstance(text, str) else text))
        other_kind = bool(batch) and isinstance(text, str) != isinstance(batch[0], str)
        if batch and (other_kind or len(batch) == BATCH_SIZE or size + own > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += own
    if batch:
        yield batch


def rows_of(found: Iterable[Batch]) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Class id, probabilities (labels,) and whether the text was cut, text by text."""
    for batch in found:
        yield from zip(batch.class_ids.tolist(), batch.probabilities, batch.truncated.tolist())
