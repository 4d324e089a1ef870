"""Several classifiers in one real server: each answers as its checkpoint and is released independently."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import tritonclient.grpc as triton

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models
from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from build_scripts.serving.client import classify, inputs
from build_scripts.serving.keep.health import HEALTHY, report
from build_scripts.serving.swap.release import release, rollback
from build_scripts.serving.swap.status import status
from tests.support.checkpoints import make_checkpoint
from tests.support.release_clients import TEXTS, TOLERANCE, Clients, Release
from tests.support.servers import (
    RunningServer,
    classifier_process,
    embedded,
    perf_analyzer_failure,
    post,
    running,
)
from tests.support.texts import PAIRS
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Release]:
    """By served name. `new` joins later; `next` is a release of `sentiment`."""
    kinds = {"text_classifier": "bert-chinese", "sentiment": "bert", "topic": "roberta", "new": "bert", "next": "bert"}
    labels = {name: [f"{name} {index}" for index in range(count)] for count, name in enumerate(kinds, 3)}
    made = {
        name: make_checkpoint(kind, tmp_path_factory.mktemp(name), labels=labels[name], seed=seed)
        for seed, (name, kind) in enumerate(kinds.items())
    }
    return {name: Release(directory) for name, directory in made.items()}


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("names")
    repository = directory / "repository"
    for name in ("sentiment", "topic"):
        build(options(checkpoints[name], name, repository=repository))
    arguments = ["--model", checkpoints["text_classifier"].options.model, "--precision", "fp32"]
    with running(repository, directory / "output.txt", *arguments) as server:
        wait_for(lambda: report(server.http, 2.0, live=False)[0] == HEALTHY, server.said)
        yield server


def options(checkpoint: Release, name: str, **changes) -> BuildOptions:
    return replace(checkpoint.options, name=name, **changes)


@pytest.fixture
def port(server) -> int:
    return server.address.http_port


SERVED = ("text_classifier", "sentiment", "topic")


@pytest.mark.parametrize("name", SERVED)
def test_each_answers_as_its_checkpoint_over_http_and_grpc(server, checkpoints, name):
    own = checkpoints[name]
    url = f"{server.http}/v2/models/{name}"
    for texts in ([*TEXTS], [pair for pair in PAIRS if all(len(one) < 500 for one in pair)][:8]):
        expected = own.oracle.probabilities(texts).numpy()
        for text, row in zip(texts, expected):
            named = dict(zip(("TEXT", "TEXT_PAIR"), [text] if isinstance(text, str) else text))
            code, body = post(f"{url}/generate", named)
            assert code == 200, body
            assert np.allclose(json.loads(body)["PROBABILITIES"], row, atol=TOLERANCE)
            code, body = post(f"{url}/infer", infer_body(*([one] for one in named.values())))
            assert code == 200, body
            outputs = {output["name"]: output["data"] for output in json.loads(body)["outputs"]}
            assert np.allclose(outputs["PROBABILITIES"], row, atol=TOLERANCE)
        with triton.InferenceServerClient(server.grpc) as client:
            found = client.infer(name, inputs(texts))
        assert np.allclose(found.as_numpy("PROBABILITIES"), expected, atol=TOLERANCE)
        labels = [own.labels[index] for index in expected.argmax(1)]
        assert [answer.label for answer in classify(texts, server.grpc, name=name)] == labels


@pytest.mark.parametrize("name", SERVED)
def test_perf_analyzer_measures_each_by_name(server, tmp_path, name):
    data = tmp_path / "inputs.json"
    for one in ({"TEXT": [TEXTS[0]]}, dict(zip(("TEXT", "TEXT_PAIR"), ([part] for part in PAIRS[0])))):
        data.write_text(json.dumps({"data": [one]}), encoding="utf-8")
        for protocol, url in (("http", server.http), ("grpc", server.grpc)):
            arguments = ["--input-data", str(data), "-i", protocol]
            assert perf_analyzer_failure(url, name, *arguments) is None


def blocks(port: int) -> dict[str, list[str]]:
    """The lines of `make status` by classifier, without memory, which varies."""
    found: dict[str, list[str]] = {}
    for line in status(port).splitlines()[1:]:
        if line.startswith("name "):
            found[line.split()[1]] = own = []
        elif not line.startswith("memory"):
            own.append(line)
    return found


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
def test_releases_of_one_under_load_of_all(server, checkpoints, port, rounds):
    of_sentiment = {name: checkpoints[name] for name in ("sentiment", "next")}
    before = blocks(port)
    assert list(before) == [*SERVED]
    models = [model for name in ("text_classifier", "topic") for model in in_processes(name)]
    processes = {model: server.find(f"/{model}/1").pid for model in models}
    with contextlib.ExitStack() as stack:
        load = {
            name: stack.enter_context(
                Clients(server, of_sentiment if name == "sentiment" else {name: checkpoints[name]}, name)
            )
            for name in SERVED
        }
        for _ in range(rounds):
            release(options(checkpoints["next"], "sentiment"), port)
            assert label_of(server, "sentiment").startswith("next")
            wait_for(lambda: answered(load["sentiment"], "next"), "a client met no answer of the release")
            rollback(port, "sentiment")
            assert label_of(server, "sentiment").startswith("sentiment")
        for name, clients in load.items():
            wait_for(lambda name=name, clients=clients: answered(clients, name), f"{name}: {clients.answers}")
    for name, clients in load.items():
        assert clients.wrong == [], name
    after = blocks(port)
    assert {name: after[name] for name in ("text_classifier", "topic")} == {
        name: before[name] for name in ("text_classifier", "topic")
    }
    assert after["sentiment"][0] == before["sentiment"][0]
    assert "before" in after["sentiment"][1]
    assert processes == {model: server.find(f"/{model}/1").pid for model in processes}


def answered(clients: Clients, release: str) -> bool:
    """Whether each kind of client has had an answer of the release."""
    return all(clients.answers[kind, release] for kind in ("keep-alive", "new connection", "gRPC", "classifier alone"))


def in_processes(name: str) -> list[str]:
    """The models of a classifier that are separate processes; NVIDIA's backend computes inside tritonserver."""
    own = Models(name)
    return [own.tokenizer, own.classifier] if embedded() else [own.tokenizer]


def label_of(server: RunningServer, name: str) -> str:
    (answer,) = classify([TEXTS[0]], server.grpc, name=name)
    return answer.label


def test_unknown_name_is_one_clear_line(server, port):
    with pytest.raises(ServingError, match="NAME=nobody: the server has none of that name, it has text_classifier, s"):
        rollback(port, "nobody")
    with pytest.raises(
        ServingError,
        match="has no classifier of that name; it has text_classifier, sentiment, topic",
    ):
        list(classify(["x"], server.grpc, name="nobody"))


def test_new_classifier_survives_a_restart(server, checkpoints, port):
    with Clients(server, {"topic": checkpoints["topic"]}, "topic") as load:
        release(options(checkpoints["new"], "new"), port)
        assert label_of(server, "new").startswith("new")
    assert load.wrong == []
    assert list(blocks(port)) == [*SERVED, "new"]
    before, victim = server.find("bin/tritonserver"), in_processes("new")[-1]
    server.find(f"/{victim}/1").send_signal(signal.SIGKILL)
    said = f"the process of {victim} was killed, and inference of new "  # fails or hangs: Triton may be slow to notice
    wait_for(lambda: said in server.said(), server.said)
    wait_for(lambda: not before.is_running(), "the old server did not end")
    wait_for(lambda: report(server.http, 2.0, live=False)[0] == HEALTHY, server.said)
    for name in (*SERVED, "new"):
        assert label_of(server, name).startswith(name)


@classifier_process
def test_status_shows_each_classifiers_memory(server, port):
    lines = [line for line in status(port).splitlines() if line.startswith("memory")]
    assert len(lines) == len(blocks(port))
    assert "classifier_topic " in "".join(lines)
