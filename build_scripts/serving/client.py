"""Classify texts, or pairs of texts, on a running server, over gRPC and in batches.

from build_scripts.serving.client import classify
for answer in classify(["Midfielder scores twice", ("A dog runs.", "An animal moves.")], url="127.0.0.1:8001"):
    print(answer.class_id, answer.label, answer.probability)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.serving.start.arguments import Tls

# Enough to keep every core busy, few enough that the first answers come at once.
BATCH_SIZE = 32
# A request closes before it holds more bytes of text than this, of the 1 MiB that the server takes at once.
BATCH_BYTES = 1 << 19
# Triton gives as many as there are.
ALL_CLASSES = 1 << 20

# A text, or the two texts of a pair.
Text = str | tuple[str, str]
# No TLS.
PLAIN = Tls()


@dataclass(frozen=True)
class Answer:
    """probability: of the class id, from 0 to 1."""

    class_id: int
    label: str
    probability: float


def classify(
    texts: Iterable[Text],
    url: str = Address().grpc_url,
    timeout_s: float = 60.0,
    tls: Tls = PLAIN,
    name: str = ENSEMBLE,
) -> Iterator[Answer]:
    """One answer a text, in order, as the batches come back. Raises ServingError if the server cannot answer.

    name: the classifier's.
    """
    with connect(url, tls) as client:
        for batch in batches(texts):
            try:
                rows = _ask(client, name, batch, 1, timeout_s)
                # Two sigmoids so near to 1 that they are equal: the class id tells which logit was larger, but the
                # class that is named first may be the other one.
                if any(class_id not in named for class_id, named in rows):
                    rows = _ask(client, name, batch, ALL_CLASSES, timeout_s)
            except InferenceServerException as error:
                raise ServingError(explain(error, url)) from error
            for class_id, named in rows:
                probability, label = named[class_id]
                yield Answer(class_id, label, float(probability))


def _ask(client: triton.InferenceServerClient, name: str, batch: list[Text], classes: int, timeout_s: float) -> list:
    """For each text its class id, and the most probable classes: class id -> probability, label."""
    outputs = [
        triton.InferRequestedOutput("CLASS_ID"),
        # They come back as "probability:class id:label"; the server knows the labels.
        triton.InferRequestedOutput("PROBABILITIES", class_count=classes),
    ]
    result = client.infer(name, inputs(batch), outputs=outputs, client_timeout=timeout_s)
    rows = []
    for class_id, named in zip(result.as_numpy("CLASS_ID")[:, 0].tolist(), result.as_numpy("PROBABILITIES")):
        parts = (one.decode("utf-8").split(":", 2) for one in named)
        rows.append((class_id, {int(index): (probability, label) for probability, index, label in parts}))
    return rows


def connect(url: str, tls: Tls = PLAIN) -> triton.InferenceServerClient:
    """A client whose messages may be of any size, as by default; and, unlike that, one that never takes a proxy."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return triton.InferenceServerClient(
        url,
        ssl=bool(tls),
        root_certificates=tls.authority,
        private_key=tls.key,
        certificate_chain=tls.certificate,
        channel_args=[*unlimited, ("grpc.enable_http_proxy", 0)],
    )


def batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Cut a stream of texts into requests of at most BATCH_SIZE texts and BATCH_BYTES, or one text that has more.

    A request holds either single texts or pairs.
    """
    batch: list[Text] = []
    size = 0
    for text in texts:
        both = text if isinstance(text, str) else "".join(text)
        own = len(both.encode("utf-8", "surrogatepass"))  # text_input says what is wrong with a surrogate
        if batch and (size + own > BATCH_BYTES or isinstance(text, str) != isinstance(batch[0], str)):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += own
        if len(batch) == BATCH_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def inputs(texts: list[Text]) -> list[triton.InferInput]:
    """TEXT of single texts; TEXT and TEXT_PAIR of pairs."""
    columns = [texts] if isinstance(texts[0], str) else zip(*texts)
    return [text_input(list(column), name) for name, column in zip(("TEXT", "TEXT_PAIR"), columns)]


def text_input(texts: list[str], name: str = "TEXT") -> triton.InferInput:
    """BYTES (len(texts), 1). Raises ServingError for a str that is no Unicode text."""
    tensor = triton.InferInput(name, [len(texts), 1], "BYTES")
    try:
        encoded = [[text.encode("utf-8")] for text in texts]
    except UnicodeEncodeError as error:
        raise ServingError(
            f"a text has the code point U+{ord(error.object[error.start]):04X} at {error.start}, half a character or "
            "a byte that is not UTF-8; expected Unicode text"
        ) from error
    tensor.set_data_from_numpy(np.array(encoded, dtype=np.object_))
    return tensor


def is_overload(error: InferenceServerException) -> bool:
    """Whether the server lives and refuses, because too many requests wait: it calls that UNAVAILABLE too."""
    return "overload:" in error.message()


def explain(error: InferenceServerException, url: str) -> str:
    """What a failed request means, and the next step."""
    if "UNAVAILABLE" in str(error.status()) and not is_overload(error):
        return f"no server answers at {url}; start one with `make serve`, or set GRPC_PORT=… to its port"
    return f"the server at {url} refused: {error.message()}"
