"""Releases behind Triton's response cache."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time
import urllib.error
import urllib.request

import pytest

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.names import ENSEMBLE
from build_scripts.serving.swap.release import release, rollback
from tests.support.release_clients import TEXTS, Clients, answering, staged_models
from tests.support.servers import RunningServer, embedded, post, running
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server


def cache_hits(server: RunningServer) -> int:
    """Of the ensemble that is loaded now; Triton's count begins anew with each."""
    with urllib.request.urlopen(f"{server.http}/v2/models/stats") as response:
        return sum(int(one["inference_stats"]["cache_hit"]["count"]) for one in json.load(response)["model_stats"])


def outputs_of(server: RunningServer, text: str, *names: str) -> set[str]:
    body = infer_body([text])
    if names:
        body["outputs"] = [{"name": name} for name in names]
    status, answer = post(f"{server.http}/v2/models/{ENSEMBLE}/infer", body)
    assert status == 200, answer
    return {output["name"] for output in json.loads(answer)["outputs"]}


@pytest.mark.long
def test_cache_keeps_releases_apart(releases, tmp_path):
    """Both releases are asked the same texts. Then a model dies while the cache answers."""
    arguments = ["--model", releases["chinese"].options.model, "--precision", "fp32", "--cache", "16M"]
    with running(tmp_path / "repository", tmp_path / "output.txt", *arguments) as server:
        port = server.address.http_port
        wait_for(lambda: "ready:" in server.said(), server.said)
        assert outputs_of(server, "news", "CLASS_ID") == {"CLASS_ID"}
        assert outputs_of(server, "news") == {"CLASS_ID", "PROBABILITIES", "TOKENS", "TRUNCATED"}
        assert cache_hits(server) == 1
        with Clients(server, releases) as clients:
            for name, change in (
                ("english", lambda: release(releases["english"].options, port)),
                ("chinese", lambda: rollback(port)),
            ):
                assert answering(server, releases) != name
                change()
                assert answering(server, releases) == name
                wait_for(lambda: cache_hits(server) > 0, server.said)
        assert clients.wrong == []
        assert len(staged_models(port)) == 1
        victim = "/classifier/1/" if embedded() else "/tokenizer/1/"
        with contextlib.closing(clients.connect()) as connection:
            # Processes of earlier releases may still be there.
            victims = [one for one in server.family() if victim in " ".join(one.cmdline()[:2])]
            max(victims, key=lambda one: one.create_time()).send_signal(signal.SIGKILL)
            deadline = time.monotonic() + HANG_S
            while "restarting" not in server.said():  # cached answers do not hide what died
                assert time.monotonic() < deadline, server.said()
                with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                    clients.infer_http("cached", connection, 0)
        wait_for(lambda: "answering again" in server.said(), server.said)
        for _ in range(2):
            assert answering(server, releases) == "chinese"
        assert cache_hits(server) >= len(TEXTS)
