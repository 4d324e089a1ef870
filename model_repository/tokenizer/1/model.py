"""Triton `python` model: TEXT -> INPUT_IDS, ATTENTION_MASK (batch, max_length) int64, TOKENS, TRUNCATED (batch, 1).

With TEXT_PAIR, which is optional, a row is a pair of texts.

Needs numpy and the `tokenizers` package, and brings the second along: a copy lies beside this file. This file takes
requests and answers them; `encoder` tokenizes, `long_texts` does so in a thread where it would take long, `admission`
refuses while too many requests wait for the classifier, `metrics` counts. Batches are the dynamic batcher's.
"""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

# Not resolved: the Python in Triton's stub cannot read a path beyond ASCII, and the one it was given never is.
HERE = Path(__file__).absolute().parent
# First in line, so that answers come from the version that was verified, whatever else the container has installed.
sys.path.insert(0, str(HERE))
from admission import Admission  # noqa: E402
from encoder import Encoder  # noqa: E402
from long_texts import LongTexts  # noqa: E402
from metrics import Metrics  # noqa: E402

# One `execute` tokenizes so much at most, the smallest requests first: about 20 ms of the worst common kind of text.
EXECUTE_BYTES = 64 << 10


class TritonPythonModel:
    def initialize(self, args):
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
        self.metrics = Metrics(args["model_name"], warn=pb_utils.Logger.log_warn)
        self.encoder = Encoder(HERE / "tokenizer.json")
        self.long_texts = LongTexts(self.encoder.encode, self.max_waiting_bytes)

    def execute(self, requests):
        """One response per request, in order, or None if some of them are answered later, by the thread."""
        admitted = self.admission.admit(len(requests))
        texts, responses = {}, [None] * len(requests)
        for index, request in enumerate(requests):
            if index >= admitted:
                responses[index] = self.refusal()
                continue
            try:
                texts[index] = self.texts_of(request)
            except ValueError as problem:
                self.metrics.refused("invalid")
                responses[index] = failure(problem, pb_utils.TritonError.INVALID_ARG)
        now = affordable(texts)
        for index, outputs in zip(now, self.encode([texts[index].rows for index in now])):
            responses[index] = success(outputs)
        if len(now) == len(texts):
            return responses
        # Once one request of a batch is answered through its sender, all must be.
        senders = [request.get_response_sender() for request in requests]
        for index in texts.keys() - set(now):
            if not self.long_texts.add(*texts[index], self.answer_through(senders[index])):
                responses[index] = self.refusal_of_long_texts(texts[index].size)
        for sender, response in zip(senders, responses):
            if response is not None:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None

    def finalize(self):
        """Triton ends this process next, and does not wait for what is answered through a sender."""
        self.long_texts.finish()
        self.metrics.flush()

    def encode(self, requests):
        """requests: lists of texts. Yields the outputs of each, output name -> array; all are tokenized at once."""
        outputs = self.encoder.encode([text for texts in requests for text in texts])
        self.metrics.texts(outputs)
        end = 0
        for texts in requests:
            start, end = end, end + len(texts)
            yield {name: array[start:end] for name, array in outputs.items()}

    def refusal(self):
        self.metrics.refused("overload")
        return overload(
            f"{self.max_pending_requests} requests wait for the classifier already "
            "(max_pending_requests in tokenizer/config.pbtxt)"
        )

    def refusal_of_long_texts(self, size):
        self.metrics.refused("long_texts")
        return overload(
            f"{self.long_texts.waiting_bytes} bytes of long texts wait already, this request has {size} more; the "
            f"limit is {self.max_waiting_bytes} (max_waiting_bytes in tokenizer/config.pbtxt)"
        )

    def answer_through(self, sender):
        """A function for LongTexts.add, which sends the response of a request."""

        def answer(parts, error):
            try:
                if error is not None:
                    raise error
                outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                self.metrics.texts(outputs)
                response = success(outputs)
            except Exception as problem:  # as Triton does for `execute`: the caller must be told, whatever it was
                response = failure(f"tokenizing failed: {problem!r}", pb_utils.TritonError.INTERNAL)
            try:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as problem:  # /dev/shm may be full; the thread has other requests to answer
                pb_utils.Logger.log_error(f"a request got no answer: {problem!r}")

        return answer

    def texts_of(self, request):
        """The Texts of a request. Raises ValueError naming what is wrong, the value and the limit."""
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
        return Texts(decoded[0] if len(decoded) == 1 else list(zip(*decoded, strict=True)), total)

    def decode(self, name, rows):
        """rows: bytes objects -> list of str. Raises ValueError naming the row, the value and the limit."""
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
    """rows: the texts of a request, list of str or of pairs of str. size: their bytes."""

    rows: list
    size: int


def affordable(texts):
    """Which requests `execute` tokenizes itself, the smallest first. texts: index -> Texts; returns indices."""
    indices = sorted(texts, key=lambda index: texts[index].size)
    sizes = itertools.accumulate(texts[index].size for index in indices)
    return [index for index, size in zip(indices, sizes) if size <= EXECUTE_BYTES]


def success(outputs):
    """outputs: output name -> array."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])


def failure(problem, code):
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(problem), code))


def overload(reason):
    """What becomes HTTP 503 and gRPC UNAVAILABLE; clients look for its first word."""
    return failure(f"overload: {reason}; try again later", pb_utils.TritonError.UNAVAILABLE)
