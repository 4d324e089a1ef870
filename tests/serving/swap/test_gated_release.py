"""The release gate under load: it refuses a worse model and lets a better one through, without a failed request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.quality import gate
from build_scripts.quality.gate import release_check
from build_scripts.serving.swap.release import release
from build_scripts.serving.swap.status import status
from tests.support.checkpoints import make_checkpoint
from tests.support.release_clients import Clients, Release
from tests.support.servers import RunningServer, running
from tests.support.texts import HEADLINES

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> dict[str, Release]:
    return {
        name: Release(make_checkpoint("bert", tmp_path_factory.mktemp(name), seed=seed))
        for name, seed in (("live", 1), ("candidate", 2))
    }


@pytest.fixture(scope="module")
def server(releases, tmp_path_factory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("gated")
    arguments = ["--model", releases["live"].options.model, "--precision", "fp32"]
    with running(directory / "repository", directory / "output.txt", *arguments) as server:
        yield server


def labelled_by(judge: Release, file: Path) -> Path:
    """Texts with the labels that one of the models gives, so that it is always right."""
    said = judge.oracle.probabilities(HEADLINES[:200]).argmax(1).tolist()
    rows = zip(HEADLINES[:200], said)
    file.write_text("".join(f"{text}\t{judge.labels[class_id]}\n" for text, class_id in rows), encoding="utf-8")
    return file


@pytest.mark.timeout(900)
def test_gate_refuses_a_worse_model_and_lets_a_better_one_through_under_load(server, releases, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "EVALUATION", tmp_path / "evaluate")
    port, options = server.address.http_port, releases["candidate"].options
    with Clients(server, releases) as clients:
        clients.await_answers("live")
        worse = release_check(labelled_by(releases["live"], tmp_path / "worse.tsv"), 0.01, options.name)
        with pytest.raises(
            ServingError, match=r"the candidate is worse: accuracy 1\.0000 -> 0\.\d+.*Nothing was switched"
        ):
            release(options, port, worse)
        clients.await_answers("live")
        assert not any(name == "candidate" for _, name in clients.answers)
        better = release_check(labelled_by(releases["candidate"], tmp_path / "better.tsv"), 0.01, options.name)
        release(options, port, better)
        clients.await_answers("candidate")
    assert clients.wrong == []
    live = status(port).splitlines()[1]
    assert options.model in live
    assert "accuracy 1.0000 (" in live
    assert "on 200 texts of better.tsv" in live
