"""Classify texts, or pairs of texts, on a running server, over gRPC and in batches.

from build_scripts.serving.client import classify
for answer in classify(["Midfielder scores twice", ("A dog runs.", "An animal moves.")], url="127.0.0.1:8001"):
    print(answer.class_id, answer.label, answer.probability)
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.serving.keep.run_state import running_servers
from build_scripts.serving.start.arguments import Tls

# Texts per request: keeps every core busy, and the first answers come early.
BATCH_SIZE = 32
# Bytes of text per request; the server's limit is 1 MiB.
BATCH_BYTES = 1 << 19
# More than any model has; Triton gives all.
ALL_CLASSES = 1 << 20
# How long a refused request is sent again, and the longest pause before that. The first pause is FIRST_PAUSE_S.
PATIENCE_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 0.1, 2.0
# Where the server's message names a text of the request.
ROW = re.compile(r"(?:in ensemble '[^']*', )?TEXT(?:_PAIR)? row (\d+)")

# A text, or the two texts of a pair.
Text = str | tuple[str, str]
# No TLS.
PLAIN = Tls()


@dataclass(frozen=True)
class Answer:
    """probability: of the class id, from 0 to 1. A checkpoint with one label gives its score instead."""

    class_id: int
    label: str
    probability: float


def classify(
    texts: Iterable[Text],
    url: str = Address().grpc_url,
    timeout_s: float = 60.0,
    tls: Tls = PLAIN,
    name: str = ENSEMBLE,
    patience_s: float = PATIENCE_S,
    unit: str = "text",
) -> Iterator[Answer]:
    """One answer per text, in order, as the batches come back. Raises ServingError if the server cannot answer.

    Sends a request again, for patience_s, while the server is overloaded; and while it does not answer, if it answered
    an earlier request, because then it starts again. name: of the classifier. unit: what errors call a text.
    """
    done = 0
    with connect(url, tls) as client:
        for batch in batches(texts):
            deadline, pause = time.monotonic() + patience_s, FIRST_PAUSE_S
            while True:
                try:
                    rows = _ask(client, name, batch, 1, timeout_s)
                    # Two sigmoids can both round to 1. The class id follows the logits, and may differ from the class
                    # that is named first.
                    if any(class_id not in named for class_id, named in rows):
                        rows = _ask(client, name, batch, ALL_CLASSES, timeout_s)
                    break
                except InferenceServerException as error:
                    again = is_overload(error) or (done > 0 and is_unavailable(error))
                    if not again or time.monotonic() > deadline:
                        raise ServingError(explain(error, url, tls, name, done, unit)) from error
                    time.sleep(pause * random.uniform(0.5, 1))  # so that many clients do not come back at once
                    pause = min(2 * pause, LONGEST_PAUSE_S)
            for class_id, named in rows:
                probability, label = named[class_id]
                yield Answer(class_id, label, float(probability))
            done += len(batch)


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
    """A client without a limit on messages (Triton's default) that ignores proxies (not the default)."""
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
    """BYTES (len(texts), 1). Raises ServingError for a str that cannot be encoded."""
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
    """Whether the server refused the request because too many wait; its status is UNAVAILABLE, too."""
    return "overload:" in error.message()


def is_unavailable(error: InferenceServerException) -> bool:
    """Whether no server answered."""
    return "UNAVAILABLE" in str(error.status()) and not is_overload(error)


def explain(
    error: InferenceServerException, url: str, tls: Tls = PLAIN, name: str = ENSEMBLE, done: int = 0, unit: str = "text"
) -> str:
    """What a failed request means, and the next step. done: texts that were answered before the request."""
    message = error.message()
    if is_unavailable(error):
        if tls and re.search("erif|andshake", message):
            return (
                f"TLS with {url} failed ({message.rpartition(': ')[2] if 'andshake' not in message else message}); "
                "TLS_CA must have signed the server's certificate, HOST must be a name in it, and the server needs TLS"
            )
        if not tls and "Socket closed" in message:
            return f"the server at {url} closes the connection; if it has TLS, set TLS_CA=…"
        return f"no server answers at {url}; start one with `make serve`, or set GRPC_PORT=… to its port"
    if "NOT_FOUND" in str(error.status()):
        served = [state.releases for state in running_servers() if state.grpc_url == url]
        names = f"it has {', '.join(served[0])}" if served else "`make status` lists them"
        return f"NAME={name}: the server at {url} has no classifier of that name; {names}"
    if row := ROW.match(message):
        return f"the server at {url} refused: {unit} {done + int(row[1]) + 1}{message[row.end() :]}"
    return f"the server at {url} refused: {message}"
