"""Releases in a running server under load: no request fails, and no answer mixes two releases."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, ENSEMBLE, Models
from build_scripts.core.options import BuildOptions
from build_scripts.releases.files import digest
from build_scripts.releases.pipeline import build
from build_scripts.releases.store import MANIFEST, live_release, releases_directory
from build_scripts.serving.keep.inference import wait_until_healthy
from build_scripts.serving.swap.model_control import Control
from build_scripts.serving.swap.release import go_live, release, rollback
from build_scripts.serving.swap.status import status
from tests.support.release_clients import TEXTS, TOLERANCE, Clients, answering, staged_models
from tests.support.servers import RunningServer, running
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(releases, tmp_path_factory) -> Iterator[RunningServer]:
    """Serves "chinese" first."""
    directory = tmp_path_factory.mktemp("release")
    arguments = ["--model", releases["chinese"].options.model, "--precision", "fp32"]
    with running(directory / "repository", directory / "output.txt", *arguments) as server:
        yield server


@pytest.fixture
def port(server) -> int:
    return server.address.http_port


@pytest.fixture
def repository(port) -> Path:
    with Control(port) as control:
        return Path(control.state.repository)


def told(port: int) -> list[str]:
    """The lines of `make status`, without how much memory is used."""
    return [line for line in status(port).splitlines() if not line.startswith("memory")]


def test_clients_notice_a_mixture(releases):
    """One release's tokenizer with the other's classifier gives answers of neither."""
    import torch

    for tokenizer, classifier in (releases.values(), reversed(releases.values())):
        for index, text in enumerate(TEXTS):
            ids = torch.tensor([tokenizer.oracle.tokenizer(text)["input_ids"]])
            ids = ids.clamp(max=classifier.oracle.model.config.vocab_size - 1)
            with torch.inference_mode():
                mixed = classifier.oracle.model(input_ids=ids).logits.softmax(-1)[0].numpy()
            assert np.abs(mixed - classifier.expected[index]).max() > 10 * TOLERANCE


def release_ids(server: RunningServer) -> set[str]:
    """The ids that the loaded models tell."""
    found = set()
    for model in Models().all:
        with urllib.request.urlopen(f"{server.http}/v2/models/{model}/config") as response:
            found.add(json.load(response)["parameters"]["release"]["string_value"])
    return found


def test_every_model_tells_its_release(server, repository):
    assert release_ids(server) == {live_release(repository).name}


def releases_on_the_metrics_page(server: RunningServer) -> set[str]:
    """Those of processes that run."""
    with urllib.request.urlopen(f"http://{server.address.metrics_address}/metrics", timeout=HANG_S) as response:
        page = response.read().decode()
    return set(re.findall(r'(?m)^text_classifier_info{.*release="(\w+)".*} 1$', page))


def test_releases_and_rollbacks_under_load(server, releases, port, repository):
    with Clients(server, releases) as clients:
        for _ in range(2):
            release(releases["english"].options, port)
            assert answering(server, releases) == "english"
            assert release_ids(server) == {live_release(repository).name}
            clients.await_answers("english")
            rollback(port)
            assert answering(server, releases) == "chinese"
            clients.await_answers("chinese")
    assert clients.wrong == []
    live = {live_release(repository).name}
    wait_for(lambda: releases_on_the_metrics_page(server) == live, "a process of another release runs")
    assert staged_models(port) == []


def test_live_release_is_left_alone(server, releases, port, capsys):
    before = {process.pid for process in server.family()}
    release(releases["chinese"].options, port)
    assert "live already, nothing to do" in capsys.readouterr().out
    # None is new. Some may be gone: a process that an earlier release replaced ends in its own time.
    assert {process.pid for process in server.family()} <= before


def test_status_tells_server_from_disk(server, releases, port, repository):
    """`make repo` switches the disk without telling the server."""
    english = build(BuildOptions(releases["english"].options.model, precision="fp32", repository=repository))
    lines = told(port)
    assert [line.split()[0] for line in lines] == ["server", "live", "on", "before"]
    assert releases["chinese"].options.model in lines[1]
    assert english.release.name in lines[2]
    assert "comes with a restart" in lines[2]
    release(releases["english"].options, port)
    assert answering(server, releases) == "english"
    assert "on disk" not in status(port)


def test_unloadable_release_changes_nothing(server, releases, port, repository):
    before, live = told(port), answering(server, releases)
    broken = releases_directory(repository) / "000000000000"
    shutil.copytree(live_release(repository), broken)
    (broken / "model.pt").write_bytes(b"no TorchScript")
    manifest = json.loads((broken / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"]["model.pt"] = digest(broken / "model.pt")  # otherwise it would not even be loaded
    (broken / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with (
        Control(port) as control,
        pytest.raises(ServingError, match="is still live, 000000000000 could not be loaded: load failed"),
    ):
        go_live(control, broken.name)
    shutil.rmtree(broken)
    assert told(port) == before
    assert answering(server, releases) == live
    assert staged_models(port) == []


def test_next_release_completes_an_interrupted_one(server, releases, port, monkeypatch):
    other = "chinese" if answering(server, releases) == "english" else "english"
    load = Control.load

    def fail_on_classifier(control, model, config=None):
        if model == CLASSIFIER:
            raise ServingError("no memory left")
        load(control, model, config)

    with monkeypatch.context() as patch:
        patch.setattr(Control, "load", fail_on_classifier)
        with pytest.raises(ServingError, match="answered, but could not be completed: no memory left"):
            release(releases[other].options, port)
    assert answering(server, releases) == other
    assert "a release was interrupted" in status(port)
    release(releases[other].options, port)
    assert answering(server, releases) == other
    assert "a release was interrupted" not in status(port)
    assert staged_models(port) == []


def test_retries_what_overload_refused(server, releases, port, monkeypatch):
    live = releases[answering(server, releases)]
    refused = InferenceServerException("overload: 128 requests wait", status="StatusCode.UNAVAILABLE")
    with Control(port) as control:
        infer, refusals = control.client.infer, [refused, refused]

        def busy(*arguments, **options):
            if refusals:
                raise refusals.pop()
            return infer(*arguments, **options)

        monkeypatch.setattr(control.client, "infer", busy)
        assert control.labels_of(ENSEMBLE, len(live.labels)) == live.labels
    assert refusals == []


@pytest.mark.long
def test_server_killed_during_release_returns_with_one(server, releases, port, monkeypatch):
    for one in releases.values():
        release(one.options, port)

    def kill(*_):
        server.find("bin/tritonserver").send_signal(signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr("build_scripts.serving.swap.release.await_stragglers", kill)
        with pytest.raises(ServingError, match="answered, but could not be completed"):
            rollback(port)
    assert wait_until_healthy(server.http, HANG_S).healthy
    live = answering(server, releases)
    assert releases[live].options.model in status(port).splitlines()[1]
    release(releases[live].options, port)  # whatever it was, it cleans up
    assert answering(server, releases) == live
    assert staged_models(port) == []
