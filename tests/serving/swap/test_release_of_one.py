"""Release one of several classifiers: changes to the repository, and calls to the server, which is a stand-in."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models
from build_scripts.releases import store
from build_scripts.releases.models import RELEASE_PARAMETER
from build_scripts.releases.sources import update_sources
from build_scripts.serving.swap import release as releasing
from build_scripts.serving.swap.model_control import Running
from build_scripts.serving.swap.release import go_live, join, rollback
from tests.support.fake_releases import fake_release
from tests.support.trees import snapshot

NAMES, LABELS = ("text_classifier", "sentiment", "topic"), ["no", "yes"]
# Release ids by classifier, oldest first; three more than the store keeps.
IDS = {name: [f"{index}{number:011x}" for number in range(store.KEPT_RELEASES + 3)] for index, name in enumerate(NAMES)}


class StandIn:
    """Replaces `Control`: records the steps of each ensemble, and the models that were loaded or unloaded."""

    def __init__(self, repository: Path, directory: Path):
        self.models: set[str] = set()
        self.ensembles = {name: Running(IDS[name][-1], pair(name), name) for name in NAMES}
        self.http_port = 0
        self.state = SimpleNamespace(
            repository=repository, staging=directory, log=directory / "log", embedded=True, caches=False,
            releases={name: IDS[name][-1] for name in NAMES},
        )  # fmt: skip

    def load(self, model: str, config: ModelConfig | None = None) -> None:
        self.models.add(model)
        if config is not None and config.ensemble_scheduling.step:
            steps = tuple(step.model_name for step in config.ensemble_scheduling.step)
            self.ensembles[model] = Running(config.parameters[RELEASE_PARAMETER].string_value, steps, model)

    def version_with_nvidias_backend(self) -> None:
        return None

    def unload(self, model: str) -> None:
        self.models.add(model)

    def running(self, name: str) -> Running:
        return self.ensembles[name]

    def labels_of(self, ensemble: str, count: int) -> list[str]:
        return LABELS[:count]


def pair(name: str) -> tuple[str, str]:
    return Models(name).tokenizer, Models(name).classifier


@pytest.fixture
def control(tmp_path) -> StandIn:
    """A stand-in with three classifiers. All IDS of each were live, one after the other."""
    repository, directory = tmp_path / "repository", tmp_path / "run"
    directory.mkdir()
    (directory / "log").touch()
    for name in NAMES:
        for release_id in IDS[name]:
            fake_release(repository, release_id, name, labels=LABELS)
            store.switch(repository, release_id, name)
    update_sources(repository)
    return StandIn(repository, directory)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("back", [False, True], ids=["release", "rollback"])
def test_release_leaves_other_classifiers_alone(control, monkeypatch, name, back):
    repository = control.state.repository
    others = [model for other in NAMES if other != name for model in Models(other).all]
    before = {model: snapshot(repository / model) for model in others}
    if back:
        monkeypatch.setattr(releasing, "Control", lambda _: nullcontext(control))
        rollback(0, name)
    else:
        go_live(control, IDS[name][0], name)
    expected = IDS[name][-2] if back else IDS[name][0]
    assert store.live_release(repository, name).name == expected
    assert control.ensembles[name] == Running(expected, pair(name), name)
    assert len(store.releases(repository, name)) == store.KEPT_RELEASES
    assert {model: snapshot(repository / model) for model in others} == before
    assert control.models & set(others) == set()
    assert {path.name for path in control.state.staging.iterdir()} == {"log", *Models(name).all}


def test_unloadable_classifier_does_not_stay_live(control, monkeypatch):
    def load(*_):
        raise ServingError("no such operator")

    repository = control.state.repository
    for release_id in ("a" * 12, "b" * 12):
        fake_release(repository, release_id, "new")
    update_sources(repository, "new")
    monkeypatch.setattr(control, "load", load)
    with pytest.raises(ServingError, match="no such operator"):
        join(control, "a" * 12, "new")
    assert store.live_release(repository, "new") is None
    assert store.history(repository, "new") == []
    assert set(store.names(repository)) == set(NAMES)
    store.switch(repository, "b" * 12, "new")
    with pytest.raises(ServingError, match="no such operator"):
        join(control, "a" * 12, "new")
    assert store.live_release(repository, "new").name == "b" * 12
    assert store.history(repository, "new") == ["b" * 12]


@pytest.mark.parametrize("embedded", [False, True], ids=["NVIDIA's backend", "embedded"])
def test_warns_of_other_thread_counts_with_nvidias_backend_only(control, monkeypatch, capsys, embedded):
    monkeypatch.setattr(releasing, "replace", lambda state, **_: state)
    monkeypatch.setattr(releasing, "write_state", lambda *_: None)
    repository = control.state.repository
    fake_release(repository, "a" * 12, "new", labels=LABELS)
    update_sources(repository, "new")
    with (repository / "classifier_new" / "config.pbtxt").open("a", encoding="utf-8") as config:
        config.write('parameters { key: "INTRA_OP_THREAD_COUNT", value: { string_value: "2" } }\n')
    control.state.embedded = embedded
    join(control, "a" * 12, "new")
    assert ("2 in classifier_new; NVIDIA's backend has one number for all" in capsys.readouterr().out) is not embedded
