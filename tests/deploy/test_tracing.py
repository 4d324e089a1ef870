"""Traces of the real server, taken by an OTLP receiver."""

from __future__ import annotations

import json

import pytest

from tests.support.http_stand_in import Reply, Request, StandIn
from tests.support.servers import post, running
from tests.support.waiting import wait_for

pytestmark = pytest.mark.server
GENERATE = "/v2/models/text_classifier/generate"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Receiver(StandIn):
    """An OTLP/HTTP receiver that keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict]] = []
        super().__init__(self.keep)

    def keep(self, request: Request) -> Reply:
        self.kept.append((request.path, json.loads(request.body)))
        return Reply()


@pytest.fixture(scope="module")
def receiver():
    with Receiver() as server:
        yield server


@pytest.fixture(scope="module")
def served(packed, receiver, tmp_path_factory):
    output = tmp_path_factory.mktemp("traced") / "output.txt"
    with running(packed.directory / "model_repository", output, "--trace", receiver.url) as server:
        yield server


def test_a_callers_trace_goes_on_through_every_step(served, receiver):
    headers = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    assert post(f"{served.http}{GENERATE}", {"TEXT": "traced"}, headers)[0] == 200

    def spans() -> list[dict]:
        resources = [resource for _, body in receiver.kept for resource in body["resourceSpans"]]
        found = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
        return [span for span in found if span["traceId"] == TRACE_ID]

    wait_for(lambda: len(spans()) >= 4, "no spans came")
    assert {path for path, _ in receiver.kept} == {"/v1/traces"}
    assert {"InferRequest", "text_classifier", "tokenizer", "classifier"} <= {span["name"] for span in spans()}
    (top,) = (span for span in spans() if span["name"] == "InferRequest")
    assert top["parentSpanId"] == "b7ad6b7169203331"
