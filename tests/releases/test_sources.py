"""Configs and code follow the project, and repositories of an earlier layout become ones of today's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases import sources, store
from build_scripts.releases.models import serving_models
from build_scripts.releases.sources import update_sources
from tests.support.fake_releases import fake_release


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A copy of the project's own repository that a test may change."""
    project = tmp_path / "project"
    for model in ("text_classifier", "tokenizer", "classifier"):
        shutil.copytree(SOURCE_REPOSITORY / model, project / model, ignore=shutil.ignore_patterns("releases", "live"))
    monkeypatch.setattr(sources, "SOURCE_REPOSITORY", project)
    return project


def test_an_unedited_config_follows_the_project(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    update_sources(elsewhere)
    (elsewhere / "tokenizer" / "config.pbtxt").write_text("edited", encoding="utf-8")
    for name in ("classifier", "tokenizer"):
        (project / name / "config.pbtxt").write_text("next version", encoding="utf-8")
    for _ in range(2):
        update_sources(elsewhere)
        assert (elsewhere / "classifier" / "config.pbtxt").read_text(encoding="utf-8") == "next version"
        assert (elsewhere / "tokenizer" / "config.pbtxt").read_text(encoding="utf-8") == "edited"


def test_code_follows_the_project(project, tmp_path):
    update_sources(tmp_path / "elsewhere")
    (project / "tokenizer" / "1" / "model.py").write_text("next version", encoding="utf-8")
    update_sources(tmp_path / "elsewhere")
    code = tmp_path / "elsewhere" / "tokenizer" / "1" / "model.py"
    assert code.read_text(encoding="utf-8") == "next version"


def earlier_layout(repository: Path, name: str) -> None:
    """Lay a classifier out as versions did in which links led through `live` into the live release."""
    tokenizer, classifier = (
        ("tokenizer", "classifier") if name == "text_classifier" else (f"tokenizer_{name}", f"classifier_{name}")
    )
    links = {
        f"{classifier}/1/model.pt": f"../../{name}/live/model.pt",
        f"{classifier}/labels.txt": f"../{name}/live/labels.txt",
        f"{tokenizer}/1/tokenizer.json": f"../../{name}/live/tokenizer.json",
        f"{tokenizer}/1/tokenizers": f"../../{name}/live/tokenizers",
    }
    for link, target in links.items():
        (repository / link).parent.mkdir(parents=True, exist_ok=True)
        (repository / link).symlink_to(target)
    (repository / name / "live").symlink_to("releases/" + "a" * 12)


@pytest.mark.parametrize("name", ["text_classifier", "topic"])
def test_an_earlier_layout_is_migrated(tmp_path, name):
    """Its release is live before the next build, during it and afterwards."""
    repository = tmp_path / "repository"
    for release_id in ("a" * 12, "b" * 12):
        fake_release(repository, release_id, name)
    store.write_history(repository, ["b" * 12, "a" * 12], name)  # as a switch left it that was killed half-way
    update_sources(repository, name)
    earlier_layout(repository, name)
    assert store.live_release(repository, name).name == "a" * 12
    update_sources(repository)
    assert serving_models(repository, tmp_path / "run")[1] == {name: "a" * 12}
    store.switch(repository, "b" * 12, name)
    assert store.history(repository, name) == ["b" * 12, "a" * 12]
    assert not [path for path in repository.rglob("*") if path.is_symlink()]
