"""LOG=json: one JSON object a line, with date and zone, Triton's log among them, and no text of a client."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.serving.keep.log_stream import following, parsed
from build_scripts.serving.keep.output import JsonLines, say
from build_scripts.serving.start.arguments import ServerOptions
from tests.support.servers import post, running
from tests.support.waiting import wait_for

SECRET = "only the client may read this"
INFER = "/v2/models/text_classifier/infer"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "I1129 17:18:17.822559 22057 model_lifecycle.cc:624] \"successfully unloaded 'classifier' version 1\"",
            ("info", "tritonserver", "model_lifecycle.cc:624: successfully unloaded 'classifier' version 1"),
        ),
        ("E1129 17:18:17.8 1 server.cc:241] not quoted", ("error", "tritonserver", "server.cc:241: not quoted")),
        ("Traceback (most recent call last):", ("info", "tritonserver", "Traceback (most recent call last):")),
    ],
)
def test_line_of_triton(line, expected):
    assert parsed(line) == expected


def test_messages_and_tritons_log_become_json_lines(monkeypatch, tmp_path):
    target, log = io.StringIO(), tmp_path / "tritonserver.log"
    monkeypatch.setattr("sys.stdout", JsonLines(target, "info"))
    monkeypatch.setattr("sys.stderr", JsonLines(target, "warning"))
    with following(log):
        say("a message")
        print("two\nlines")
        log.write_text('I1129 17:18:17.822559 1 a.cc:1] "loaded"\n')
    monkeypatch.undo()
    lines = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [(line["level"], line["source"], line["message"]) for line in lines] == [
        ("warning", "supervisor", "a message"),
        ("info", "supervisor", "two"),
        ("info", "supervisor", "lines"),
        ("info", "tritonserver", "a.cc:1: loaded"),
    ]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)


def test_other_formats_are_refused():
    with pytest.raises(ServingError, match="LOG=xml: expected text or json"):
        ServerOptions(log="xml")


@pytest.mark.server
def test_every_line_of_a_server_is_json_without_texts(tiny_repository, subject, tmp_path):
    options = ("--model", str(subject("bert").directory), "--precision", "fp32", "--log", "json")
    data = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": [SECRET]}
    with running(tiny_repository, tmp_path / "output.txt", *options) as server:
        assert post(server.http + INFER, {"inputs": [data]})[0] == 200
        assert post(server.http + INFER, {"inputs": [{**data, "data": [f"{SECRET} " * 10000]}]})[0] == 400
        assert post(server.http + INFER, {"inputs": [{**data, "shape": [1, 2]}]})[0] == 400
        wait_for(lambda: "a real inference answered" in server.said(), server.said)
    lines = [json.loads(line) for line in server.said().splitlines()]
    assert {line["source"] for line in lines} == {"supervisor", "tritonserver"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    assert any(line["message"] == "stopped" for line in lines)
    assert SECRET not in server.said()
