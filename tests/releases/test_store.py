"""Releases take turns in a repository; no real model is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.releases import store
from tests.support.fake_releases import fake_release, go_live
from tests.support.trees import leftovers


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "repository"


def test_keeps_the_last_live_releases(repository):
    for name in "abcdef":
        fake_release(repository, name)
        go_live(repository, name)
        store.prune(repository)
    assert [path.name for path in store.releases(repository)] == ["f", "e", "d"]
    go_live(repository, "d")
    fake_release(repository, "g")
    go_live(repository, "g")
    store.prune(repository)
    assert [path.name for path in store.releases(repository)] == ["g", "d", "f"]


def test_copy_has_the_same_history(repository, tmp_path):
    for name in "cab":
        fake_release(repository, name)
        go_live(repository, name)
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy, symlinks=True, copy_function=shutil.copyfile)
    for path in sorted((copy / "text_classifier" / "releases").iterdir()):
        os.utime(path, (1, 1))
    assert [path.name for path in store.releases(copy)] == ["b", "a", "c"]
    assert store.history(copy) == ["b", "a", "c"]


def test_release_is_flushed_before_it_is_live(repository, monkeypatch):
    """So are renamed directories. The test checks the order of calls, as it cannot cut the power."""
    events: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def name(path: str | Path) -> str:
        return os.path.relpath(path, repository / "text_classifier").replace(".building-a", "a")

    def synced(descriptor: int) -> None:
        events.append(f"sync {name(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(f"rename {name(target)}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> None:
        events.append(f"replace {name(target)}")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "replace", replaced)
    fake_release(repository, "a")
    store.switch(repository, "a")
    whole, there, live = events.index("rename releases/a"), events.index("replace releases/history"), len(events)
    for path in ("releases/a/model.pt", "releases/a/manifest.json", "releases/a"):
        assert f"sync {path}" in events[:whole]
    assert "sync releases" in events[whole:there]
    assert f"sync releases/.history.{os.getpid()}" in events[whole:there]
    assert "sync releases" in events[there:live]


def test_reader_always_finds_a_live_release(repository):
    for name in "ab":
        fake_release(repository, name)
    store.switch(repository, "a")
    found, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                found.append(store.require_release(repository)["release"])
            except (OSError, ServingError) as error:
                found.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for name in 50 * "ba":
        store.switch(repository, name)
    done.set()
    reader.join()
    assert set(found) == {"a", "b"}


def test_half_removed_release_does_not_count(repository, monkeypatch):
    for name in "abcd":
        fake_release(repository, name)
        go_live(repository, name)

    def killed_after_one_file(directory: Path) -> None:
        (directory / "model.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", killed_after_one_file)
        with pytest.raises(KeyboardInterrupt):
            store.prune(repository)
    assert [path.name for path in store.releases(repository)] == ["d", "c", "b"]
    fake_release(repository, "a")
    assert (repository / "text_classifier" / "releases" / "a" / "model.pt").is_file()
    assert leftovers(repository) == []


def test_failed_build_leaves_nothing(repository):
    with contextlib.suppress(ServingError), store.staged(repository, "a") as staging:
        (staging / store.MANIFEST).write_text("{}", encoding="utf-8")
        raise ServingError("the disk is full, say")
    assert os.listdir(store.releases_directory(repository)) == []
    assert store.live_release(repository) is None
