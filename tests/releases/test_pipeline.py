"""A model repository is always complete: after repeated, concurrent and killed builds, and on a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import OURS, SOURCE_REPOSITORY
from build_scripts.releases import fingerprint, pipeline, store
from tests.support.checkpoints import make_checkpoint
from tests.support.fake_releases import fake_release, go_live
from tests.support.forker import forking
from tests.support.trees import assert_complete, leftovers, snapshot

MOMENTS = 8


@pytest.fixture(scope="module")
def forker(tmp_path_factory):
    with forking(tmp_path_factory.mktemp("outputs")) as forker:
        yield forker


@pytest.fixture(scope="module")
def options(subject, tmp_path_factory) -> list[str]:
    """Arguments of a quick build: a tiny model, one precision, few texts to compare."""
    calibration = tmp_path_factory.mktemp("calibration") / "texts.txt"
    calibration.write_text("Museum reopens after two years\n", encoding="utf-8")
    return ["--model", subject("bert").directory, "--precision", "fp32", "--calibration", calibration]


@pytest.fixture
def repository(tmp_path) -> Path:
    return tmp_path / "repository"


def test_moved_repository_is_complete(tiny_repository, tmp_path):
    moved = shutil.copytree(tiny_repository, tmp_path / "elsewhere", symlinks=True)
    assert assert_complete(moved) == assert_complete(tiny_repository)
    for name in ("text_classifier/config.pbtxt", "tokenizer/1/model.py", "classifier/config.pbtxt"):
        assert (moved / name).read_bytes() == (SOURCE_REPOSITORY / name).read_bytes()


@pytest.mark.slow
def test_building_again_does_nothing(forker, options, repository):
    first = forker.run(*options, "--model-repository", repository)
    assert "release" in first
    before, times = snapshot(repository), modification_times(repository)
    again = forker.run(*options, "--model-repository", repository)
    assert "up to date" in again
    assert "loading torch" not in again
    assert snapshot(repository) == before
    assert modification_times(repository) == times


def modification_times(repository: Path) -> dict[Path, int]:
    files = (path for path in repository.rglob("*") if "releases" in path.parts)
    return {path: path.lstat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_edited_config_stays(forker, options, repository):
    forker.run(*options, "--model-repository", repository)
    config = repository / "tokenizer" / "config.pbtxt"
    edited = config.read_text(encoding="utf-8").replace('"128"', '"64"')
    config.write_text(edited, encoding="utf-8")
    said = forker.run(*options, "--max-length", 32, "--model-repository", repository)
    assert f"{config} differs from the project's and is kept" in said
    assert config.read_text(encoding="utf-8") == edited
    config.unlink()
    assert "is kept" not in forker.run(*options, "--model-repository", repository)
    assert config.read_bytes() == (SOURCE_REPOSITORY / "tokenizer" / "config.pbtxt").read_bytes()


def test_fingerprint_covers_every_input(subject, tmp_path, monkeypatch):
    calibration = tmp_path / "texts.txt"
    calibration.write_text("one\n", encoding="utf-8")
    directory = make_checkpoint("bert", tmp_path / "checkpoint")

    def release_id(**changes) -> str:
        options = BuildOptions(**{"model": str(directory), "calibration": calibration, **changes})
        return fingerprint.fingerprint(options, Path(options.model))

    ids = [release_id(), release_id(max_length=64), release_id(precision="bf16"), release_id(calibration=None)]
    calibration.write_text("two\n", encoding="utf-8")
    ids.append(release_id())
    labelled = tmp_path / "labelled.tsv"
    labelled.write_text("one\tlabel 1\n", encoding="utf-8")
    ids += [release_id(calibrate=labelled), release_id(calibrate=labelled, label_column="topic")]
    ids += [release_id(calibrate=calibration), release_id(calibrate=calibration, calibration=None)]
    labelled.write_text("one\tlabel 2\n", encoding="utf-8")
    ids.append(release_id(calibrate=labelled))
    assert release_id(label_column="topic") == release_id(), "columns matter only with CALIBRATE"
    monkeypatch.setattr(fingerprint, "CALIBRATION", SOURCE_REPOSITORY / "tokenizer" / "config.pbtxt")
    ids.append(release_id(calibration=None))
    make_checkpoint("bert", directory, seed=1)
    ids.append(release_id())
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    ids.append(release_id())
    monkeypatch.setattr(fingerprint.platform, "machine", lambda: "another")  # with another tokenizers library
    ids.append(release_id())
    assert len(set(ids)) == len(ids)
    copy = shutil.copytree(directory, tmp_path / "elsewhere" / directory.name)
    assert release_id() == release_id(repository=tmp_path / "elsewhere", model=str(copy)), "places do not matter"


@pytest.mark.slow
def test_second_build_waits(forker, options, repository):
    repository.mkdir()
    with (repository / store.BUILD_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = forker.start(*options, "--model-repository", repository)
        deadline = time.monotonic() + 120
        while "waiting for it" not in child.text():
            assert time.monotonic() < deadline, child.text()
            time.sleep(0.01)
        time.sleep(0.2)
        assert snapshot(repository) == {}, "nothing may be written without the lock"
    code, text = child.wait()
    assert code == 0, text
    assert_complete(repository)


@pytest.mark.slow
def test_concurrent_builds_succeed(forker, options, repository):
    children = [
        forker.start(*options, "--max-length", length, "--model-repository", repository) for length in (32, 32, 64)
    ]
    results = [child.wait() for child in children]
    assert [code for code, _ in results] == [0, 0, 0], results
    assert sum("exporting" in text for _, text in results) == 2, "the same release is built once"
    assert_complete(repository)
    assert len(store.releases(repository)) == 2
    assert leftovers(repository) == []


@pytest.mark.slow
def test_killed_build_leaves_old_or_new_release(forker, options, tmp_path):
    start = time.monotonic()
    forker.run(*options, "--max-length", 16, "--model-repository", tmp_path / "old")
    took = time.monotonic() - start
    old = assert_complete(tmp_path / "old")
    generator = random.Random(5)
    for moment in range(MOMENTS):
        fresh = moment % 2 == 0
        repository = tmp_path / (f"fresh-{moment}" if fresh else "old")
        child = forker.start(*options, "--max-length", 32 + moment, "--model-repository", repository)
        delay = took * (moment + generator.random()) / MOMENTS
        time.sleep(delay)
        child.kill()
        about = f"killed after {delay:.3f} of {took:.3f} s: {child.text()}"
        if store.live_release(repository):
            live = assert_complete(repository)
            assert fresh or live == old or max_length(repository) == 32 + moment, about
        else:
            assert fresh, about
        for release in store.releases(repository):
            assert {"model.pt", "tokenizer.json", "labels.txt", "tokenizers"} <= set(os.listdir(release)), about
        forker.run(*options, "--max-length", 32 + moment, "--model-repository", repository)
        old = assert_complete(repository) if not fresh else old
        assert max_length(repository) == 32 + moment
    forker.run(*options, "--max-length", 17, "--model-repository", tmp_path / "old")
    assert all(leftovers(repository) == [] for repository in tmp_path.iterdir())


def max_length(repository: Path) -> int:
    # Not resolved, which would leave the mount namespace that the path leads into.
    live = store.releases_directory(repository) / store.history(repository)[0]
    return store.read_manifest(live)["max_length"]


def fill(staging: Path, options: BuildOptions, source: Path, release_id: str) -> None:
    """Instead of a build's work: one file and a manifest."""
    (staging / "model.pt").write_text(f"model {release_id}", encoding="utf-8")
    manifest = {"release": release_id, "files": store.digests(staging)}
    (staging / store.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_a_damaged_release_is_built_again(subject, repository, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_fill", fill)
    options = BuildOptions(model=str(subject("bert").directory), repository=repository)
    file = pipeline.build(options).release / "model.pt"
    whole = file.read_bytes()
    file.write_bytes(b"another model")
    assert not pipeline.build(options).changed
    assert file.read_bytes() == whole
    assert f"{file} is not the file that release" in capsys.readouterr().out


def test_only_what_decides_a_release_makes_it_stale():
    """The printed table and the store are in another room."""
    rooms = {module.relative_to(OURS).parts[0] for module in fingerprint.ingredient_modules()}
    assert rooms == {"core", "graph", "convert"}


def test_a_build_goes_on_where_there_are_no_locks(subject, repository, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "_fill", fill)
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    assert pipeline.build(BuildOptions(model=str(subject("bert").directory), repository=repository)).changed
    assert capsys.readouterr().out.startswith(f"{repository} cannot be locked (No locks available): run one build")


def test_concurrent_build_does_not_remove_new_release(subject, repository, monkeypatch):
    """Two builds, and the second runs whenever the first lets it; more releases are there than are kept."""
    locked, others = store.locked, iter([33, 34])

    @contextlib.contextmanager
    def locked_and_then_another(repository: Path):
        with locked(repository):
            yield
        for max_length in others:
            pipeline.build(BuildOptions(model=model, max_length=max_length, repository=repository))

    model = str(subject("bert").directory)
    monkeypatch.setattr(pipeline, "_fill", fill)
    for name in "abc":
        fake_release(repository, name)
        go_live(repository, name)
    monkeypatch.setattr(store, "locked", locked_and_then_another)
    built = pipeline.build(BuildOptions(model=model, max_length=32, repository=repository))
    assert built.changed
    assert built.release.is_dir()


# A disk that is really full: a small one of our own, in a mount namespace that vanishes with its process.
MOUNT = 'mount -t tmpfs -o size=40m tmpfs "$0" && exec "$@"'
CAN_MOUNT = (
    shutil.which("unshare")
    and not subprocess.run(
        ["unshare", "-rm", "sh", "-c", MOUNT, "/mnt", "true"], capture_output=True, check=False
    ).returncode
)


@pytest.mark.skipif(not CAN_MOUNT, reason="unprivileged mount namespaces are not available here")
@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_old_release(options, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with forking(tmp_path, "unshare", "-rm", "sh", "-c", MOUNT, str(disk)) as forker:
        repository = disk / "repository"
        seen = Path(f"/proc/{forker.process.pid}/root{repository}")  # the same from outside the namespace
        new = [*options, "--max-length", 64, "--model-repository", repository]
        forker.run(*options, "--max-length", 32, "--model-repository", repository)
        before = snapshot(seen)
        # Enough for nothing, then for some of model.pt and tokenizer.json. The tokenizers package is a link by now.
        for free in (0, 100 << 10, 180 << 10, 240 << 10):
            filler = seen.parent / "filler"
            filler.write_bytes(bytes(max(0, free_bytes(seen) - free)))
            code, text = forker.start(*new).wait()
            filler.unlink()
            assert code == 1, f"{free} bytes free: {text}"
            errors = [line for line in text.splitlines() if line.startswith("error:")]
            assert len(errors) == 1, text
            assert "Traceback" not in text
            assert "no space left" in errors[0] or "No space left" in errors[0]
            assert snapshot(seen) == before
        forker.run(*new)
        assert max_length(seen) == 64


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize
