"""A package survives transfers: no links, nothing twice, nothing empty, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, Models
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import PROJECT
from build_scripts.releases import store
from build_scripts.releases.models import parameters, written
from build_scripts.releases.named_classifiers import read_config
from build_scripts.releases.package import package
from build_scripts.releases.pipeline import build
from build_scripts.releases.store import require_release


@pytest.fixture(scope="module")
def packed(tiny_repository, tmp_path_factory):
    return package(tiny_repository, tmp_path_factory.mktemp("packed") / "package")


@pytest.fixture
def models(packed) -> Path:
    return packed.directory / "model_repository"


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_ordinary_files_each_once_none_empty(models):
    paths = list(models.rglob("*"))
    assert not [path for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir())]
    assert not [path for path in paths if path.is_file() and (path.stat().st_size == 0 or path.stat().st_nlink > 1)]
    assert not [path for path in paths if path.is_dir() and not any(path.iterdir())]
    assert not [path for path in paths if path.name.startswith(".") or path.name == "__pycache__"]
    contents = list(files_of(models).values())
    assert len(contents) == len(set(contents))


def test_holds_every_model_and_the_release(models, tiny_repository):
    live = store.live_release(tiny_repository)
    for name in ("classifier", "tokenizer", "text_classifier"):
        source = (tiny_repository / name / "config.pbtxt").read_text(encoding="utf-8")
        assert (models / name / "config.pbtxt").read_text(encoding="utf-8") == source + written(parameters(live, name))
        assert any((models / name / "1").iterdir()), name
    for name in ("classifier/1/model.pt", "classifier/labels.txt", "tokenizer/1/tokenizer.json"):
        assert (models / name).read_bytes() == (live / Path(name).name).read_bytes()
    manifest = models / "text_classifier" / "manifest.json"
    assert manifest.read_bytes() == (live / "manifest.json").read_bytes()


def test_tokenizers_copy_has_licence_and_bill_of_materials(models):
    info = models / "tokenizer" / "1" / f"tokenizers-{version('tokenizers')}.dist-info"
    assert "License" in (info / "METADATA").read_text(encoding="utf-8")
    assert json.loads(next(info.glob("sboms/*.json")).read_bytes())["bomFormat"] == "CycloneDX"


def test_checksums_find_a_changed_file(models, tmp_path):
    copy = shutil.copytree(models, tmp_path / "copy")
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=copy).returncode == 0
    listed = {line.split("  ")[1] for line in (copy / "SHA256SUMS").read_text(encoding="utf-8").splitlines()}
    assert listed == files_of(copy).keys() - {"SHA256SUMS"}
    with (copy / "classifier" / "labels.txt").open("a") as file:
        file.write("another\n")
    assert subprocess.run(check, cwd=copy, capture_output=True).returncode == 1


def test_same_release_gives_same_bytes(packed, tiny_repository, tmp_path):
    moved = shutil.copytree(tiny_repository, tmp_path / "moved", symlinks=True)
    for path in moved.rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
        if path.is_file() and not path.is_symlink():
            path.chmod(0o600)
    again = package(moved, tmp_path / "again")
    assert again.digest == packed.digest
    assert files_of(again.directory) == files_of(packed.directory)
    changed = moved / "classifier" / "config.pbtxt"
    changed.write_text(changed.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    assert package(moved, tmp_path / "again").digest != packed.digest


@pytest.mark.slow
def test_rebuild_gives_same_bytes(subject, tmp_path):
    """Built by another process, from another place, and measured anew."""
    digests = []
    for place in ("one", "two"):
        checkpoint = shutil.copytree(subject("bert").directory, tmp_path / place / "checkpoint")
        options = ["--model", checkpoint, "--precision", "fp32", "--model-repository", tmp_path / place / "repository"]
        command = [sys.executable, "-m", "build_scripts", "repo", *options]
        # torch writes the constants of a module in the order of a set of strings.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run(command, cwd=PROJECT, env=environment, check=True, stdout=subprocess.DEVNULL)
        digests.append(package(tmp_path / place / "repository", tmp_path / place / "package").digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize(("tar", "root"), [("model_repository.tar", "model_repository"), ("layer", "models")])
def test_tar_and_image_layer_are_anonymous_copies(packed, models, tmp_path, tar, root):
    if tar == "layer":
        blobs = packed.directory / "oci" / "blobs"
        manifest = json.loads((blobs / packed.digest.replace(":", "/")).read_bytes())
        tar = Path("oci/blobs") / manifest["layers"][0]["digest"].replace(":", "/")
    with tarfile.open(packed.directory / tar) as archive:
        assert {(m.uid, m.gid, m.uname, m.gname) for m in archive.getmembers()} == {(0, 0, "", "")}
        archive.extractall(tmp_path, filter="data")
    assert files_of(tmp_path / root) == files_of(models)


def test_device_cpu_gives_each_classifier_two_instances(packed, tiny_repository, tmp_path):
    for_cpu = package(tiny_repository, tmp_path / "cpu", "cpu").directory / "model_repository"
    for model in Models().all:
        config = read_config(for_cpu / model / "config.pbtxt")
        if model == CLASSIFIER:
            assert [(group.kind, group.count) for group in config.instance_group] == [
                (config.instance_group[0].KIND_CPU, 2)
            ]
            del config.instance_group[:]
        assert config == read_config(packed.directory / "model_repository" / model / "config.pbtxt")


def test_device_keeps_no_two_instance_groups(tiny_repository, tmp_path):
    tuned = shutil.copytree(tiny_repository, tmp_path / "tuned", symlinks=True)
    with (tuned / "classifier" / "config.pbtxt").open("a") as config:
        config.write("instance_group { kind: KIND_CPU, count: 4 }\n")
    with pytest.raises(ServingError, match="has an instance_group already; remove it, or pack without DEVICE"):
        package(tuned, tmp_path / "package", "cpu")
    with pytest.raises(ServingError, match="DEVICE=gpu; expected cpu"):
        package(tuned, tmp_path / "package", "gpu")


def test_package_is_never_changed(models, tiny_repository):
    built = require_release(tiny_repository)
    assert require_release(models).items() <= {**built, "checkpoint": Path(built["checkpoint"]).name}.items()
    before = files_of(models)
    with pytest.raises(ServingError, match="is a package, which is replaced as a whole"):
        build(BuildOptions(repository=models))
    with pytest.raises(ServingError, match="is a package already"):
        package(models, models.parent / "another")
    assert files_of(models) == before


@pytest.mark.slow
def test_carries_every_built_classifier_only(subject, tmp_path):
    repository = tmp_path / "repository"
    for name in ("sentiment", "topic"):
        build(BuildOptions(str(subject("bert").directory), precision="fp32", repository=repository, name=name))
    packed = package(repository, tmp_path / "package")
    models = packed.directory / "model_repository"
    assert list(packed.releases) == store.names(models) == ["sentiment", "topic"]
    assert not [path for path in models.rglob("*") if path.is_symlink()]
    assert {path.name for path in models.iterdir() if path.is_dir()} == {
        *("sentiment", "tokenizer_sentiment", "classifier_sentiment"),
        *("topic", "tokenizer_topic", "classifier_topic"),
    }
    for name in ("sentiment", "topic"):
        assert require_release(models, name)["release"] == require_release(repository, name)["release"]
        assert (models / f"tokenizer_{name}" / "1" / "tokenizers" / "tokenizers.abi3.so").is_file()


def test_never_overwrites_other_directories(tiny_repository, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ServingError, match="holds something that is not a package"):
        package(tiny_repository, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_refuses_an_empty_repository(tmp_path):
    with pytest.raises(ServingError, match="make repo"):
        package(tmp_path, tmp_path / "package")


def test_refuses_a_licence_of_another_version(tiny_repository, tmp_path, monkeypatch):
    monkeypatch.setattr("build_scripts.releases.package.distribution", lambda _: type("D", (), {"version": "0.1"}))
    with pytest.raises(ServingError, match=r"carries tokenizers .*, installed is 0\.1"):
        package(tiny_repository, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []
