"""Triton `python` model: TEXT -> INPUT_IDS, ATTENTION_MASK (batch, max_length) int64, TOKENS, TRUNCATED (batch, 1).

Needs numpy and the `tokenizers` package, and brings the second along: a copy lies beside this file. It truncates and
pads; it does not batch (the dynamic batcher does). While too many requests wait for the classifier it refuses.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HERE = Path(__file__).resolve().parent
# First in line, so that answers come from the version that was verified, whatever else the container has installed.
sys.path.insert(0, str(HERE))
from admission import Admission  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

# Longer texts are tried by a beginning of each of these sizes before the whole is tokenized; see encode_long.
BEGINNINGS = (8_192, 65_536)
# Where text may be cut without changing a token before the cut: between two plain words, for pre-tokenizers that split
# at spaces; for BERT's also between two Chinese characters or two punctuation marks, which it always isolates.
BETWEEN_WORDS = r"(?<=[A-Za-z])(?= [A-Za-z])"
BETWEEN_BERT_SYMBOLS = r"(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])|(?<=[!-/:-@])(?=[!-/:-@])"
SPANNING_A_CUT = re.compile(r"\S |[\u4e00-\u9fff]{2}|[!-/:-@]{2}")
SPLITTING_AT_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Metaspace", "ByteLevel"}


class TritonPythonModel:
    def initialize(self, args):
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self.max_text_bytes = int(parameters["max_text_bytes"])
        self.max_request_bytes = int(parameters["max_request_bytes"])
        self.max_pending_requests = int(parameters["max_pending_requests"])
        metrics = os.environ.get("TRITON_METRICS_ADDRESS", parameters["metrics_address"])
        self.admission = Admission(self.max_pending_requests, metrics, warn=pb_utils.Logger.log_warn)
        self.tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self.tokenizer.no_padding()  # rows are padded below, in numpy
        self.max_length = self.tokenizer.truncation["max_length"]
        description = json.loads((HERE / "tokenizer.json").read_text(encoding="utf-8"))
        self.pad_id = description["padding"]["pad_id"]
        self.safe_cut = safe_cut_pattern(description)
        self.added_tokens = [token["content"].lower() for token in description["added_tokens"]]

    def execute(self, requests):
        """One response per request, in order; the last ones are refused if the classifier has enough to do."""
        admitted = self.admission.admit(len(requests))
        return self.answer(requests[:admitted]) + [self.refusal() for _ in requests[admitted:]]

    def refusal(self):
        """What becomes HTTP 503 and gRPC UNAVAILABLE."""
        message = (
            f"overload: {self.max_pending_requests} requests wait for the classifier already "
            "(max_pending_requests in tokenizer/config.pbtxt); try again later"
        )
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.UNAVAILABLE))

    def answer(self, requests):
        """One response per request, in order; a bad request gets an error of its own."""
        texts, spans, errors = [], [], []
        for request in requests:
            start, error = len(texts), None
            try:
                texts += self.decode(pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy())
            except ValueError as problem:
                error = pb_utils.TritonError(str(problem), pb_utils.TritonError.INVALID_ARG)
            spans.append(slice(start, len(texts)))
            errors.append(error)
        outputs = self.encode(texts)
        return [
            pb_utils.InferenceResponse(error=error)
            if error
            else pb_utils.InferenceResponse([pb_utils.Tensor(name, array[span]) for name, array in outputs.items()])
            for span, error in zip(spans, errors)
        ]

    def decode(self, rows):
        """rows: (batch, 1) bytes objects -> list of str. Raises ValueError naming the row, the value and the limit."""
        texts, rows = [], rows.reshape(-1)
        total = sum(map(len, rows))
        if total > self.max_request_bytes:
            raise ValueError(
                f"the request has {total} bytes of TEXT; the limit is {self.max_request_bytes} "
                "(max_request_bytes in tokenizer/config.pbtxt): send fewer texts at once"
            )
        for index, raw in enumerate(rows):
            if len(raw) > self.max_text_bytes:
                raise ValueError(
                    f"TEXT row {index} has {len(raw)} bytes; the limit is {self.max_text_bytes} "
                    "(max_text_bytes in tokenizer/config.pbtxt)"
                )
            try:
                texts.append(raw.decode("utf-8"))
            except UnicodeDecodeError as problem:
                raise ValueError(
                    f"TEXT row {index} is not UTF-8: byte 0x{raw[problem.start]:02x} at offset {problem.start}"
                ) from problem
        return texts

    def encode(self, texts):
        """texts: list of n str -> the outputs by name: INPUT_IDS, ATTENTION_MASK (n, max_length) int64, TOKENS (n, 1)
        int32, how many columns are tokens, TRUNCATED (n, 1) bool, whether the text has more."""
        is_long = [len(text) > BEGINNINGS[0] for text in texts]
        encodings = self.tokenizer.encode_batch_fast(["" if long else text for text, long in zip(texts, is_long)])
        input_ids = np.full((len(texts), self.max_length), self.pad_id, dtype=np.int64)
        attention_mask = np.zeros((len(texts), self.max_length), dtype=np.int64)
        tokens = np.empty((len(texts), 1), dtype=np.int32)
        truncated = np.empty((len(texts), 1), dtype=np.bool_)
        for row, encoding in enumerate(encodings):
            ids, truncated[row] = self.encode_long(texts[row]) if is_long[row] else self.read(encoding)
            tokens[row] = len(ids)
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"INPUT_IDS": input_ids, "ATTENTION_MASK": attention_mask, "TOKENS": tokens, "TRUNCATED": truncated}

    def read(self, encoding):
        """The ids of an encoding, and whether it was cut. Only a full one can have been."""
        ids = encoding.ids
        return ids, len(ids) == self.max_length and bool(encoding.overflowing)

    def encode_long(self, text):
        """As read, of a text of which most will be cut: a few milliseconds instead of a second for a megabyte.

        A beginning that fills max_length, cut where no token can span, has the ids of the whole text; a token follows.
        """
        for size in BEGINNINGS:
            cut = self.last_safe_cut(text, size)
            if cut:
                ids = self.tokenizer.encode_batch_fast([text[:cut]])[0].ids
                if len(ids) == self.max_length:
                    return ids, True
        return self.read(self.tokenizer.encode_batch_fast([text])[0])

    def last_safe_cut(self, text, size):
        """The last place in text[size // 2 : size] where a cut changes no token before it; None if there is none."""
        if self.safe_cut is None:
            return None
        for match in reversed(list(self.safe_cut.finditer(text, size // 2, size))):
            cut = match.start()
            # An added token such as [MASK] is found in the raw text and may span what looks like a boundary.
            if not any(
                token in text[cut - len(token) + 1 : cut + len(token) - 1].lower() for token in self.added_tokens
            ):
                return cut
        return None


def safe_cut_pattern(description):
    """The places where a text may be cut, as a compiled pattern; None if this tokenizer knows no such place.

    description: tokenizer.json, parsed.
    """
    if description["truncation"]["direction"] != "Right":
        return None
    pre_tokenizer = description["pre_tokenizer"] or {"type": None}
    parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    splits = [
        part
        for part in parts
        if part["type"] in SPLITTING_AT_SPACES and part.get("split", True) and part.get("use_regex", True)
    ]
    if not splits:
        return None
    normalizer = description["normalizer"] or {}
    # Such a token is searched for in the normalized text: last_safe_cut, which reads the raw text, would not see it.
    if normalizer and any(t["normalized"] and SPANNING_A_CUT.search(t["content"]) for t in description["added_tokens"]):
        return None
    isolates = splits[0]["type"] == "BertPreTokenizer" and normalizer.get("handle_chinese_chars", False)
    return re.compile(f"{BETWEEN_WORDS}|{BETWEEN_BERT_SYMBOLS}" if isolates else BETWEEN_WORDS)
