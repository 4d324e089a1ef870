"""Each bad request has one defined answer and does not affect other requests."""

import json
import struct
import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.soak.hostile import GENERATE, INFER, MAX_TEXT_BYTES, hostile_requests
from tests.support.servers import embedded, post
from tests.support.texts import any_text
from tests.support.waiting import HANG_S

GOOD = ["Midfielder scores twice as champions win away", "Central bank holds rates", "Museum opens late on Fridays"]
HOSTILE = {request.name: request for request in hostile_requests(vocab_size=30522, max_length=512, max_batch_size=64)}


@pytest.fixture(scope="module")
def neighbours(default_server, default_oracle):
    """Good requests while the tests run; each must be answered correctly."""
    expected = default_oracle.class_ids(GOOD)
    stop, answers = threading.Event(), []

    def ask():
        with httpx.Client(base_url=default_server.http, timeout=HANG_S) as client:
            while not stop.is_set():
                response = client.post(GENERATE, json={"TEXT": GOOD})
                answers.append(response.json().get("CLASS_ID") if response.status_code == 200 else response.text)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield answers
    stop.set()
    for thread in threads:
        thread.join()
    assert answers
    assert all(answer == expected for answer in answers), next(a for a in answers if a != expected)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_request_gets_its_answer(name, default_server, neighbours):
    request = HOSTILE[name]
    status, body = post(default_server.http + request.path, request.body, request.headers)
    assert request.is_answered_by(status, body.decode("utf-8", "replace"), embedded=embedded()), body[:500]


def test_nvidias_backend_has_its_own_defined_answers():
    """Class id -1, or an error for the batch. Neither backend may give the other's answer."""
    differ = [request for request in HOSTILE.values() if request.elsewhere]
    assert len(differ) == 5
    for request in differ:
        status, says = request.elsewhere
        there = f"{says}"
        assert request.is_answered_by(status, there, embedded=False)
        assert not request.is_answered_by(status, there)
        assert not request.is_answered_by(request.status, request.says, embedded=False)
        assert request.is_answered_by(request.status, request.says)


def test_each_tritons_wording_is_accepted():
    for name in ("64 MiB of text", "empty list"):
        request = HOSTILE[name]
        assert all(request.is_answered_by(400, f"error: {words}") for words in request.says)
        assert not request.is_answered_by(500, request.says[1])
        assert not request.is_answered_by(400, "another refusal")


@pytest.mark.parametrize(
    "text", ["", " ", "\t\r\n", "a\0b", "\x01\x07\x1b", "\ufeff", "\U0010ffff", "a" * MAX_TEXT_BYTES]
)
def test_strange_text_is_classified_like_hugging_face(text, default_server, default_oracle, neighbours):
    status, body = post(default_server.http + GENERATE, {"TEXT": text})
    assert status == 200
    assert json.loads(body)["CLASS_ID"] == default_oracle.class_ids([text])[0]


def test_zero_mask_counts_the_first_token(default_server):
    zeros = ask_classifier(default_server, [101, 2023, 102], [0, 0, 0])
    assert zeros == ask_classifier(default_server, [101, 2023, 102], [1, 0, 0])


def test_nonzero_mask_values_except_2_count_as_1(default_server):
    """2 marks the second text of a pair."""
    strange = ask_classifier(default_server, [101, 2023, 102, 0], [7, -1, 3, 0])
    assert strange == ask_classifier(default_server, [101, 2023, 102, 0], [1, 1, 1, 0])
    assert strange != ask_classifier(default_server, [101, 2023, 102, 0], [1, 1, 2, 0])


def test_mask_with_holes_hides_those_tokens(default_server, default_oracle):
    import torch

    ids, mask = [101, 2023, 3185, 2003, 102], [1, 0, 1, 0, 1]
    with torch.inference_mode():
        logits = default_oracle.model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).logits
    class_id, probabilities = ask_classifier(default_server, ids, mask)
    assert class_id == logits.argmax().item()
    assert probabilities == pytest.approx(logits.softmax(-1)[0].tolist(), abs=1e-4)


def ask_classifier(server, ids: list[int], mask: list[int]) -> tuple[int, list[float]]:
    inputs = [
        {"name": f"INPUT__{index}", "shape": [1, len(data)], "datatype": "INT64", "data": data}
        for index, data in enumerate((ids, mask))
    ]
    status, body = post(f"{server.http}/v2/models/classifier/infer", {"inputs": inputs})
    assert status == 200, body
    outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
    return outputs["OUTPUT__0"][0], outputs["OUTPUT__1"]


BATCH, EXAMPLES = 25, 200


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(rows=st.lists(st.one_of(any_text.map(str.encode), st.binary(max_size=80)), min_size=BATCH, max_size=BATCH))
def test_generated_inputs_are_answered_or_refused(default_server, default_oracle, rows):
    """200 requests of 25 inputs, half text, half raw bytes. Each is repeated with its valid inputs only."""
    valid, broken = [], 0
    for row in rows:
        try:
            valid.append(row.decode("utf-8"))
        except UnicodeDecodeError:
            broken += 1
    status, body = send(default_server, rows)
    assert (status, b"is not UTF-8" in body) == ((400, True) if broken else (200, False)), body[:300]
    if valid:
        status, body = send(default_server, [text.encode("utf-8") for text in valid])
        assert status == 200, body[:300]
        found = next(output for output in json.loads(body)["outputs"] if output["name"] == "CLASS_ID")["data"]
        assert found == default_oracle.class_ids(valid)


def send(server, rows: list[bytes]) -> tuple[int, bytes]:
    data = b"".join(struct.pack("<I", len(row)) + row for row in rows)
    tensor = {
        "name": "TEXT",
        "shape": [len(rows), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(data)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    return post(server.http + INFER, header + data, {"Inference-Header-Content-Length": str(len(header))})
