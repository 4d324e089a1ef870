"""Triton `python` model: TEXT -> INPUT_IDS, ATTENTION_MASK (batch, width) int64, TOKENS, TRUNCATED (batch, 1).

The width is 512, or the next power of two if a text of the request is longer, but never more than max_length. The
optional TEXT_PAIR makes a row a pair of texts. Triton's dynamic batcher forms the batches.

Needs numpy and the `tokenizers` package; a copy of the package lies beside this file. This file receives requests and
answers them. `encoder` tokenizes, `long_texts` tokenizes long texts in a thread, `admission` refuses requests while the
classifier's queue is full, `metrics` counts, and `info` says what runs.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import triton_python_backend_utils as pb_utils

# Not resolved: the stub's Python cannot read a non-ASCII path, and the path it is given is always ASCII.
HERE = Path(__file__).absolute().parent
# First, so that the verified version answers, whatever else the container has installed.
sys.path.insert(0, str(HERE))
from admission import Admission  # noqa: E402
from encoder import Encoder, Outputs, Row, Text  # noqa: E402
from info import labels  # noqa: E402
from long_texts import Answer, LongTexts  # noqa: E402
from metrics import Metrics  # noqa: E402

# Bytes that one `execute` tokenizes itself, smallest requests first; about 20 ms of the slowest common kind of text.
EXECUTE_BYTES = 64 << 10


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self.max_text_bytes = int(parameters["max_text_bytes"])
        self.max_request_bytes = int(parameters["max_request_bytes"])
        self.max_waiting_bytes = int(parameters["max_waiting_bytes"])
        self.max_pending_requests = int(parameters["max_pending_requests"])
        metrics = os.environ.get("TRITON_METRICS_ADDRESS", parameters["metrics_address"])
        self.admission = Admission(
            self.max_pending_requests, metrics, args["model_name"], warn=pb_utils.Logger.log_warn
        )
        self.metrics = Metrics(args["model_name"], labels(parameters), warn=pb_utils.Logger.log_warn)
        self.encoder = Encoder(HERE / "tokenizer.json")
        self.long_texts = LongTexts(self.encoder.tokenize, self.max_waiting_bytes)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse] | None:
        """One response per request, in order; None if the thread answers some of them later."""
        admitted = self.admission.admit(len(requests))
        texts: dict[int, Texts] = {}
        responses: list[pb_utils.InferenceResponse | None] = [None] * len(requests)
        for index, request in enumerate(requests):
            if index >= admitted:
                responses[index] = self.refusal()
                continue
            try:
                texts[index] = self.read(request)
            except ValueError as problem:
                self.metrics.refused("invalid")
                responses[index] = failure(problem, pb_utils.TritonError.INVALID_ARG)
        now = affordable(texts)
        for index, rows in zip(now, self.tokenize([texts[index].rows for index in now])):
            responses[index] = self.answer(rows, requests[index].requested_output_names())
        if len(now) == len(texts):
            return responses
        # Once one request of a batch is answered through its sender, all must be.
        senders = [request.get_response_sender() for request in requests]
        for index in texts.keys() - set(now):
            answer = self.answer_through(senders[index], requests[index].requested_output_names())
            if not self.long_texts.add(*texts[index], answer):
                responses[index] = self.refusal_of_long_texts(texts[index].size)
        for sender, response in zip(senders, responses):
            if response is not None:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def finalize(self) -> None:
        """Answer what waits: Triton ends this process next and would not wait for response senders."""
        self.long_texts.finish()
        self.metrics.end()

    def tokenize(self, requests: list[list[Text]]) -> Iterator[list[Row]]:
        """Tokenize the texts of all requests in one call; yields the rows of each request."""
        rows = iter(self.encoder.tokenize([text for texts in requests for text in texts]))
        return ([*itertools.islice(rows, len(texts))] for texts in requests)

    def answer(self, rows: list[Row], requested: Collection[str]) -> pb_utils.InferenceResponse:
        """The response of a request with these rows, with the requested outputs only.

        A sender would drop the others without Python's lock, which may end the process.
        """
        outputs = self.encoder.outputs(rows)
        self.metrics.texts(outputs)
        return success({name: array for name, array in outputs.items() if name in requested})

    def refusal(self) -> pb_utils.InferenceResponse:
        self.metrics.refused("overload")
        return overload(
            f"{self.max_pending_requests} requests wait for the classifier already "
            "(max_pending_requests in tokenizer/config.pbtxt)"
        )

    def refusal_of_long_texts(self, size: int) -> pb_utils.InferenceResponse:
        self.metrics.refused("long_texts")
        return overload(
            f"{self.long_texts.waiting_bytes} bytes of long texts wait already, this request has {size} more; the "
            f"limit is {self.max_waiting_bytes} (max_waiting_bytes in tokenizer/config.pbtxt)"
        )

    def answer_through(self, sender: pb_utils.InferenceResponseSender, requested: Collection[str]) -> Answer:
        """A callback for LongTexts.add that sends a request's response."""

        def answer(rows: list[Row], error: Exception | None) -> None:
            try:
                if error is not None:
                    raise error
                response = self.answer(rows, requested)
            except Exception as problem:  # the client must be told about any error, as Triton does for `execute`
                response = failure(f"tokenizing failed: {problem!r}", pb_utils.TritonError.INTERNAL)
            try:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as problem:  # /dev/shm may be full; the thread must go on
                pb_utils.Logger.log_error(f"a response could not be sent: {problem!r}")

        return answer

    def read(self, request: pb_utils.InferenceRequest) -> Texts:
        """The texts of a request. Raises ValueError with the fault, its value and the limit."""
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ("TEXT", "TEXT_PAIR")}
        columns = {name: tensor.as_numpy().reshape(-1) for name, tensor in tensors.items() if tensor is not None}
        total = sum(len(raw) for rows in columns.values() for raw in rows)
        if total > self.max_request_bytes:
            raise ValueError(
                f"the request has {total} bytes of {' and '.join(columns)}; the limit is {self.max_request_bytes} "
                "(max_request_bytes in tokenizer/config.pbtxt): send fewer texts at once"
            )
        if "TEXT_PAIR" in columns and self.encoder.pairs.room < 0:
            raise ValueError(
                f"TEXT_PAIR: this model reads {self.encoder.max_length} tokens, fewer than a pair has special ones; "
                "send TEXT alone, or build it with a larger MAX_LENGTH"
            )
        decoded = [self.decode(name, rows) for name, rows in columns.items()]
        return Texts([*decoded[0]] if len(decoded) == 1 else list(zip(*decoded, strict=True)), total)

    def decode(self, name: str, rows: Iterable[bytes]) -> list[str]:
        """Decode an input's rows. Raises ValueError with the row, the value and the limit."""
        texts = []
        for index, raw in enumerate(rows):
            if len(raw) > self.max_text_bytes:
                raise ValueError(
                    f"{name} row {index} has {len(raw)} bytes; the limit is {self.max_text_bytes} "
                    "(max_text_bytes in tokenizer/config.pbtxt)"
                )
            try:
                texts.append(raw.decode("utf-8"))
            except UnicodeDecodeError as problem:
                raise ValueError(
                    f"{name} row {index} is not UTF-8: byte 0x{raw[problem.start]:02x} at offset {problem.start}"
                ) from problem
        return texts


class Texts(NamedTuple):
    """rows: a request's texts or pairs. size: their bytes."""

    rows: list[Text]
    size: int


def affordable(texts: Mapping[int, Texts]) -> list[int]:
    """Indices of the requests that `execute` tokenizes itself, smallest first."""
    indices = sorted(texts, key=lambda index: texts[index].size)
    sizes = itertools.accumulate(texts[index].size for index in indices)
    return [index for index, size in zip(indices, sizes) if size <= EXECUTE_BYTES]


def success(outputs: Outputs) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def failure(problem: object, code: int) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(problem), code))


def overload(reason: str) -> pb_utils.InferenceResponse:
    """HTTP 503, gRPC UNAVAILABLE. Clients look for the first word."""
    return failure(f"overload: {reason}; try again later", pb_utils.TritonError.UNAVAILABLE)
