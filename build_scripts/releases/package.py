"""Pack the live releases as a plain model repository, for a bucket, a volume or an image. Builds and changes nothing.

    python -m build_scripts package --output build/package

A package has ordinary files only, each once and none empty: object stores know neither links nor empty files. It is
written three times: as `model_repository/`, as `model_repository.tar`, and as `oci/`, an OCI image layout whose one
layer holds the same files under /models, where KServe looks for them. The same release gives the same bytes, on every
machine: how a build went on one is not in the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, Models
from build_scripts.releases import store
from build_scripts.releases.files import digest
from build_scripts.releases.models import PARTS, code, parameters, written
from build_scripts.releases.named_classifiers import read_config

# What a copied package owes to its authors and to scanners. Not RECORD: the copy leaves out files that it lists.
DIST_INFO = ("METADATA", "WHEEL", "licenses", "sboms")
# Time of every file, which is part of a tar's bytes: 1980, the earliest that zip knows.
TIME = 315_532_800
# Go's names, which OCI uses.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"
# DEVICE=cpu. NVIDIA's backend computes a batch in one go, and with one instance a short text waits for it: beside eight
# connections with long texts its p50 was 1,074 ms, and 409 ms with two instances, of which one serves the short texts.
# The embedded backend computes long batches in parts, short texts first, and needs no second instance.
CPU_INSTANCES = """
# Two, so that a short text need not wait until a batch of long ones is computed (`make package DEVICE=cpu`).
instance_group [
  { kind: KIND_CPU, count: 2 }
]
"""


@dataclass(frozen=True)
class Package:
    """A written package. digest: of the image's manifest, equal for equal releases. releases: name -> id."""

    directory: Path
    digest: str
    releases: dict[str, str]
    files: int
    size: int


def package(repository: Path, output: Path, device: str = "") -> Package:
    """Write the live release of every classifier to `output`, whose earlier package it replaces.

    device: "cpu" gives each classifier CPU_INSTANCES, "" the instances of its config. Raises ServingError if nothing
    was built yet, if a release does not hold the files that it was built with, if `output` holds something else, or if
    another tokenizers package is installed than the release was built with.
    """
    if device not in ("", "cpu"):
        raise ServingError(f"DEVICE={device}; expected cpu, or no DEVICE for the instances of classifier/config.pbtxt")
    live = _live_releases(repository)
    if output.is_dir() and any(output.iterdir()) and not store.is_package(output / "model_repository"):
        raise ServingError(f"OUTPUT={output} holds something that is not a package; name a new or an empty directory")
    new = output.with_name(f".{output.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        models = new / "model_repository"
        with store.locked(repository):  # a build would remove releases
            for name, release in live.items():
                _pack(repository, name, release, models, CPU_INSTANCES if device else "")
        write_checksums(models)
        write_tar(models, new / "model_repository.tar", "model_repository")
        image = write_image(models, new / "oci", release="-".join(directory.name for directory in live.values()))
        shutil.rmtree(output, ignore_errors=True)
        new.rename(output)
    except OSError as error:
        raise ServingError(
            f"OUTPUT={output} cannot be written: {error.strerror}; free space or name another"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    files = _files(output / "model_repository")
    ids = {name: directory.name for name, directory in live.items()}
    return Package(output, image, ids, len(files), sum(path.stat().st_size for path in files))


def _live_releases(repository: Path) -> dict[str, Path]:
    """Name of a classifier -> directory of its release."""
    if store.is_package(repository):
        raise ServingError(f"{repository} is a package already; copy it, or name the repository that it was made from")
    live = {name: store.live_release(repository, name) for name in store.names(repository)}
    found = {name: directory for name, directory in live.items() if directory}
    if not found:
        raise ServingError(f"{repository} holds no built release; run `make repo` first")
    return found


def _pack(repository: Path, name: str, release: Path, models: Path, instances: str) -> None:
    """Write the three models of one classifier, with the tokenizers package's licence, and its manifest.

    instances: for the classifier's config, "" to leave it as it is.
    """
    store.refuse_damaged(release)
    for kind, model in zip(Models().all, Models(name).all):
        config = repository / model / store.CONFIG
        text = config.read_text(encoding="utf-8") + written(parameters(release, kind))
        if instances and kind == CLASSIFIER:
            if read_config(config).instance_group:
                raise ServingError(f"{config} has an instance_group already; remove it, or pack without DEVICE")
            text += instances
        _write(models / model / store.CONFIG, text)
        for path, source in (*code(repository, kind), *_parts(release, kind)):
            if source.stat().st_size:
                _copy(source, models / model / path)
    for path, source in dist_info(store.read_manifest(release)["versions"]["tokenizers"]):
        _copy(source, models / Models(name).tokenizer / "1" / path)
    _copy(release / store.MANIFEST, models / name / store.MANIFEST)


def _parts(release: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    """(path in the model, file) of what the release adds to a model."""
    for path, part in PARTS[kind].items():
        files = sorted((release / part).rglob("*")) if (release / part).is_dir() else [release / part]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                yield Path(path) / file.relative_to(release / part), file


def dist_info(version: str) -> Iterator[tuple[Path, Path]]:
    """(name, file) of the licence and bill of materials of the tokenizers package that a release carries."""
    installed = distribution("tokenizers")
    if installed.version != version:
        raise ServingError(
            f"the release carries tokenizers {version}, installed is {installed.version}; run `make repo`, then again"
        )
    for file in installed.files or []:
        if ".dist-info" in file.parts[0] and file.parts[1] in DIST_INFO:
            yield Path(*file.parts), Path(str(file.locate()))


def write_checksums(models: Path) -> None:
    """SHA256SUMS, for `sha256sum --check` after a transfer."""
    lines = [f"{digest(file)}  {file.relative_to(models).as_posix()}\n" for file in _files(models)]
    (models / store.CHECKSUMS).write_text("".join(lines), encoding="utf-8")
    _normalise(models / store.CHECKSUMS)
    for directory in [models, *(path for path in models.rglob("*") if path.is_dir())]:
        _normalise(directory)


def write_tar(models: Path, tar: Path, root: str) -> None:
    """All files under one root, in a fixed order, with nothing of this machine or hour in it."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in [models, *sorted(models.rglob("*"))]:
            name = Path(root) / path.relative_to(models)
            archive.add(path, name.as_posix(), recursive=False, filter=anonymous)


def write_image(models: Path, layout: Path, release: str) -> str:
    """An OCI image layout of one uncompressed layer: weights hardly compress. Returns the manifest's digest.

    Source: the OCI image specification 1.0, image-layout.md, manifest.md and config.md.
    """
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    tar = layout / "layer.tar"
    write_tar(models, tar, "models")
    layer = _described(f"{OCI}.layer.v1.tar", tar.rename(blobs / digest(tar)))
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())  # that of the tokenizers library inside
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Labels": {"org.opencontainers.image.version": release}},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": _described(f"{OCI}.config.v1+json", _blob(blobs, config)),
        "layers": [layer],
        "annotations": {"org.opencontainers.image.version": release},
    }
    entry = _described(manifest["mediaType"], _blob(blobs, manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    (layout / "index.json").write_text(json.dumps(index), encoding="utf-8")
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="utf-8")
    return entry["digest"]


def _blob(blobs: Path, content: dict) -> Path:
    data = json.dumps(content, sort_keys=True).encode()
    file = blobs / hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    return file


def _described(media_type: str, blob: Path) -> dict:
    return {"mediaType": media_type, "digest": f"sha256:{blob.name}", "size": blob.stat().st_size}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    _normalise(target)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    _normalise(target)


def _normalise(path: Path) -> None:
    path.chmod(0o755 if path.is_dir() else 0o644)
    os.utime(path, (TIME, TIME))


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
