"""Several classifiers in one repository: each has its own models and releases, made of the same sources."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models, check_name
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases import named_classifiers, sources, store
from build_scripts.releases.pipeline import build
from build_scripts.releases.sources import update_sources
from build_scripts.releases.store import require_release
from tests.support.fake_releases import fake_release
from tests.support.trees import assert_complete, snapshot

ID = "0123456789ab"


@pytest.fixture
def repository(tmp_path) -> Path:
    """It has the sources, and nothing built."""
    repository = tmp_path / "repository"
    update_sources(repository)
    return repository


def config(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


@pytest.mark.parametrize("name", ["text_classifier", "sentiment", "a", "Topic_2", "x" * 64, "text", f"a{ID}_x"])
def test_accepted_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "2x", "_x", "a-b", "a b", "a/b", "..", "é", "x\n", "x" * 65),
        *("tokenizer", "classifier", "tokenizer_x", "classifiers", "text_classifier_x", "cached", "cached_x"),
        *(f"text_classifier_{ID}", f"sentiment_{ID}", "abcdefabcdef"),
    ],
)
def test_refused_names(name):
    with pytest.raises(ServingError, match="cannot be a classifier's name; expected a letter") as refusal:
        check_name(name)
    assert "\n" not in str(refusal.value).replace(name, "")


PARTS = st.sampled_from(["tokenizer", "classifier", "text_classifier", "text", "a", "_", ID, "abcdefabcdef"])


@given(st.sets(st.lists(PARTS, min_size=1, max_size=4).map("".join), min_size=2))
def test_model_names_never_collide(given_names):
    """For any combination of classifier names, candidates included."""
    loaded = []
    for name in given_names | {"text_classifier"}:
        try:
            own = Models(check_name(name)).all
        except ServingError:
            continue
        loaded.append({*own, *(f"{model}_{release}" for model in own for release in (ID, "abcdefabcdef"))})
    for one, other in itertools.combinations(loaded, 2):
        assert not one & other


@pytest.mark.slow
def test_first_name_needs_no_default(subject, tmp_path):
    repository = tmp_path / "repository"
    options = BuildOptions(str(subject("bert").directory), precision="fp32", repository=repository, name="sentiment")
    built = build(options)
    assert store.names(repository) == ["sentiment"]
    assert assert_complete(repository, "sentiment") == built.release.name
    assert not build(options).changed
    with pytest.raises(ServingError, match="run `make repo"):
        require_release(repository)


@pytest.mark.slow
def test_new_name_leaves_others_alone(subject, tiny_repository, tmp_path):
    repository = shutil.copytree(tiny_repository, tmp_path / "repository", symlinks=True)
    before = snapshot(repository)
    build(BuildOptions(str(subject("bert").directory), precision="fp32", repository=repository, name="sentiment"))
    assert store.names(repository) == ["text_classifier", "sentiment"]
    after = snapshot(repository)
    assert {path: after.get(path) for path in before} == before
    added = {Path(path).parts[0] for path in after.keys() - before.keys()}
    assert added == set(Models("sentiment").all)


@pytest.mark.slow
def test_tokenizers_package_is_stored_once(subject, tiny_repository, tmp_path):
    """All classifiers' processes then share it in memory."""
    repository = shutil.copytree(tiny_repository, tmp_path / "repository", symlinks=True)
    for name in ("sentiment", "topic"):
        build(BuildOptions(str(subject("bert").directory), precision="fp32", repository=repository, name=name))
    libraries = list(repository.glob("*/releases/*/tokenizers/tokenizers.abi3.so"))
    assert len(libraries) == 3
    assert len({library.stat().st_ino for library in libraries}) == 1


def test_configs_are_the_defaults_with_other_names(repository):
    named_classifiers.add(repository, "topic")
    default, own = Models(), Models("topic")
    for model, new in zip(default.all, own.all):
        found, expected = config(repository, new), config(SOURCE_REPOSITORY, model)
        assert found.name == new
        found.name = expected.name
        steps = list(zip(found.ensemble_scheduling.step, expected.ensemble_scheduling.step))
        assert len(steps) == (2 if model == "text_classifier" else 0)
        for step, committed in steps:
            assert step.model_name == f"{committed.model_name}_topic"
            step.model_name = committed.model_name
        assert found == expected


def test_source_changes_reach_every_unedited_config(repository):
    for name in ("sentiment", "topic"):
        fake_release(repository, "a", name)
        store.switch(repository, "a", name)
        update_sources(repository, name)
    edited = repository / "tokenizer_topic" / "config.pbtxt"
    edited.write_text(edited.read_text(encoding="utf-8").replace('"131072"', '"7"'), encoding="utf-8")
    source = repository / "tokenizer" / "config.pbtxt"
    source.write_text(source.read_text(encoding="utf-8").replace('"131072"', '"9"'), encoding="utf-8")
    for _ in range(2):
        update_sources(repository)
        limits = {
            model: config(repository, model).parameters["max_text_bytes"].string_value
            for model in ("tokenizer", "tokenizer_sentiment", "tokenizer_topic")
        }
        assert limits == {"tokenizer": "9", "tokenizer_sentiment": "9", "tokenizer_topic": "7"}


def test_each_has_its_own_history(repository):
    for name, ids in {"sentiment": "abcde", "topic": "xa"}.items():
        for release_id in ids:
            fake_release(repository, release_id, name)
            store.switch(repository, release_id, name)
            store.prune(repository, name)
    assert [path.name for path in store.releases(repository, "sentiment")] == ["e", "d", "c"]
    assert [path.name for path in store.releases(repository, "topic")] == ["a", "x"]
    assert store.live_release(repository, "topic").parts[-3:] == ("topic", "releases", "a")
    assert store.live_release(repository) is None


def test_other_repository_gets_the_default_models_only(repository, tmp_path, monkeypatch):
    named_classifiers.add(repository, "topic")
    monkeypatch.setattr(sources, "SOURCE_REPOSITORY", repository)
    update_sources(tmp_path / "other")
    assert {path.name for path in (tmp_path / "other").iterdir()} == set(Models().all)
