"""Bad requests, each with its one defined answer.

The tests send each of them; the soak mixes them into its traffic. Status 500 is Triton's, for JSON that its HTTP
frontend cannot parse, before any model is involved. No setting changes it (triton-inference-server/server, issue 8762
and pull request 8773, still open in May 2026).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from build_scripts.core.names import CLASSIFIER, ENSEMBLE

GENERATE, INFER = f"/v2/models/{ENSEMBLE}/generate", f"/v2/models/{ENSEMBLE}/infer"
CLASSIFIER_INFER = f"/v2/models/{CLASSIFIER}/infer"
# The limits in tokenizer/config.pbtxt.
MAX_TEXT_BYTES, MAX_REQUEST_BYTES = 1 << 17, 1 << 20


@dataclass(frozen=True)
class Hostile:
    """status: of the answer. says: text that its body must contain, one of several where Triton's versions differ.

    elsewhere: status and text of NVIDIA's C++ backend, which cannot refuse one request of a batch.
    """

    name: str
    path: str
    body: bytes
    status: int
    says: str | tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)
    elsewhere: tuple[int, str] | None = None

    def is_answered_by(self, status: int, body: str, *, embedded: bool = True) -> bool:
        """Whether this is the defined answer. embedded: the Python-based backend runs."""
        expected, says = (self.status, self.says) if embedded or not self.elsewhere else self.elsewhere
        return status == expected and any(words in body for words in ((says,) if isinstance(says, str) else says))


# NVIDIA's backend: class id -1 for a row with a bad token id; an error for a batch that it cannot compute.
NO_CLASS, NO_ANSWER = (200, '"data":[-1]'), (500, "PyTorch execute failure")

# Wordings of Triton 2.71 (26.07) that 2.51 does not have.
TOO_LARGE, NO_SHAPE = "exceeds the maximum allowed input size", "input 'TEXT' has no shape"


def generate(name: str, body: bytes | dict, status: int, says: str | tuple[str, ...]) -> Hostile:
    return Hostile(name, GENERATE, body if isinstance(body, bytes) else json.dumps(body).encode(), status, says)


def binary(
    name: str, rows: list[bytes], status: int, says: str, *, shape: list[int] | None = None, datatype: str = "BYTES"
) -> Hostile:
    """TEXT as raw bytes, length-prefixed, in Triton's binary tensor extension."""
    data = b"".join(struct.pack("<I", len(row)) + row for row in rows) if datatype == "BYTES" else b"".join(rows)
    tensor = {
        "name": "TEXT",
        "shape": shape if shape is not None else [len(rows), 1],
        "datatype": datatype,
        "parameters": {"binary_data_size": len(data)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    return Hostile(name, INFER, header + data, status, says, {"Inference-Header-Content-Length": str(len(header))})


def tokens(
    name: str,
    ids: list,
    mask: list,
    status: int,
    says: str,
    elsewhere: tuple[int, str] | None = None,
    *,
    datatype: str = "INT64",
    rows: int = 1,
) -> Hostile:
    """input_ids and attention_mask of identical rows, sent straight to the classifier."""
    inputs = [
        {"name": "INPUT__0", "shape": [rows, len(ids)], "datatype": datatype, "data": ids * rows},
        {"name": "INPUT__1", "shape": [rows, len(mask)], "datatype": "INT64", "data": mask * rows},
    ]
    body = json.dumps({"inputs": inputs}).encode()
    return Hostile(name, CLASSIFIER_INFER, body, status, says, elsewhere=elsewhere)


def hostile_requests(vocab_size: int, max_length: int, max_batch_size: int) -> list[Hostile]:
    """Every kind of bad request, for a classifier of these sizes and the limits in the committed configs."""
    unparsable = "failed to parse the request JSON buffer"
    over = max_batch_size + 1
    text, request = MAX_TEXT_BYTES, MAX_REQUEST_BYTES
    too_many = [1] * (max_length + 1)
    return [
        # text
        binary("invalid UTF-8", [b"\xff\xfe"], 400, "TEXT row 0 is not UTF-8: byte 0xff at offset 0"),
        binary("one bad text of two", [b"good", b"ab\xc3"], 400, "TEXT row 1 is not UTF-8: byte 0xc3 at offset 2"),
        generate("invalid UTF-8 in JSON", b'{"TEXT": "\xff"}', 400, "is not UTF-8: byte 0xff at offset 0"),
        generate("lone low surrogate", b'{"TEXT": "a\\udc00"}', 400, "is not UTF-8: byte 0xed at offset 1"),
        generate("text over the limit", {"TEXT": "a" * (text + 1)}, 400, f"{text + 1} bytes; the limit is {text}"),
        binary("texts over the limit", [b"a" * text] * 9, 400, f"{9 * text} bytes of TEXT; the limit is {request}"),
        generate(
            "64 MiB of text", {"TEXT": "a" * (64 << 20)}, 400, (f"{64 << 20} bytes of TEXT; the limit", TOO_LARGE)
        ),
        # shape, type and name
        binary("empty batch", [], 400, "expected 1 string elements for inference input 'TEXT'", shape=[0, 1]),
        generate("empty list", {"TEXT": []}, 400, ("expected 1 string elements for inference input 'TEXT'", NO_SHAPE)),
        generate("batch over the limit", {"TEXT": ["a"] * over}, 400, f"batch-size must be <= {max_batch_size}"),
        binary("rank 1", [b"a"], 400, "Expected [-1,1], got [1]", shape=[1]),
        binary("rank 3", [b"a"], 400, "Expected [-1,1], got [1,1,1]", shape=[1, 1, 1]),
        binary("two texts a row", [b"a", b"b"], 400, "Expected [-1,1], got [1,2]", shape=[1, 2]),
        binary("fewer texts than said", [b"a", b"b"], 400, "expected 3 string elements", shape=[3, 1]),
        binary("more texts than said", [b"a", b"b"], 400, "unexpected number of string elements 2", shape=[1, 1]),
        binary("wrong type", [b"\0" * 8], 400, "data-type is 'INT64'", shape=[1, 1], datatype="INT64"),
        generate("missing input", {"TXT": "a"}, 400, "inputs between 1 and 2 but got 0 inputs"),
        Hostile("no inputs", INFER, b'{"inputs": []}', 400, "inputs between 1 and 2 but got 0 inputs"),
        Hostile("unknown model", "/v2/models/nobody/infer", b"{}", 404, "'nobody' is not found"),
        # straight to the classifier
        tokens("id past the vocabulary", [vocab_size], [1], 400, f"token id {vocab_size} in column 0", NO_CLASS),
        tokens("negative id", [1, -5], [1, 1], 400, "token id -5 in column 1", NO_CLASS),
        tokens("too many columns", too_many, too_many, 400, f"counts column {max_length}", NO_CLASS),
        tokens("ids and mask differ", [1] * 4, [1] * 5, 400, "INPUT__0 has 4 columns and INPUT__1 5", NO_ANSWER),
        tokens("no columns", [], [], 400, "INPUT__0 has 0 columns", NO_ANSWER),
        tokens("32-bit ids", [1], [1], 400, "data-type is 'INT32'", datatype="INT32"),
        tokens("classifier batch over the limit", [1], [1], 400, f"batch-size must be <= {max_batch_size}", rows=over),
        # what Triton's HTTP frontend cannot parse
        generate("malformed JSON", b'{"TEXT": "a"', 500, unparsable),
        generate("empty body", b"", 500, unparsable),
        generate("lone high surrogate", b'{"TEXT": "\\ud800"}', 500, unparsable),
        generate("a number for a text", {"TEXT": 5}, 500, "attempt to access JSON non-string as string"),
        tokens("ids that are not integers", ["a"], [1], 500, "non-signed-integer as signed-integer"),
    ]
