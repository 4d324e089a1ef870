"""The whole build: checkpoint -> verified TorchScript -> a release in the model repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from build_scripts.convert.error_guard import refusing
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cpu_precisions, has_gpu
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import CALIBRATION, OURS, SOURCE_REPOSITORY
from build_scripts.releases import store
from build_scripts.releases.default_model import demo_checkpoint, headlines

# Changing one of these changes what a build writes, or could.
INGREDIENTS = (OURS / "core", OURS / "graph", OURS / "convert")
INGREDIENT_PACKAGES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Built:
    """A complete release. changed: False if it was live already."""

    release: Path
    manifest: dict
    changed: bool


def build(options: BuildOptions) -> Built:
    """Bring the repository to what the options ask for, doing only what is missing. Raises ServingError."""
    store.refuse_package(options.repository)
    source = _checkpoint_directory(options)
    # One lock for both steps: a release that is not live yet is the first that another build would remove.
    with store.locked(options.repository):
        release = _make_release(options, source)
        changed = store.live_release(options.repository, options.name) != release.resolve()
        if changed:
            store.switch(options.repository, release.name, options.name)
            store.prune(options.repository, options.name)
        return Built(release, store.read_manifest(release), changed)


def build_release(options: BuildOptions) -> Built:
    """Make sure that the release exists, without switching to it. changed: whether the live one is another."""
    store.refuse_package(options.repository)
    source = _checkpoint_directory(options)
    with store.locked(options.repository):
        release = _make_release(options, source)
        changed = store.live_release(options.repository, options.name) != release.resolve()
        return Built(release, store.read_manifest(release), changed)


def _make_release(options: BuildOptions, source: Path) -> Path:
    """The release's directory, filled now if it is not there. The caller holds the lock."""
    with refusing(source, "reading it"):
        release_id = fingerprint(options, source)
    update_sources(options.repository, options.name)
    release = store.releases_directory(options.repository, options.name) / release_id
    if not (release / store.MANIFEST).is_file():
        with (
            store.staged(options.repository, release_id, options.name) as staging,
            refusing(source, "building a release of it"),
        ):
            _fill(staging, options, source, release_id)
    return release


def copy_package(package: Path, target: Path, repository: Path) -> None:
    """A copy of the tokenizers package. Its files are those of another release's copy, if they are the same: 10 MB that
    lie on the disk once, and in the memory of all tokenizers once.
    """
    earlier = sorted(repository.glob(f"*/releases/*/{target.name}"))

    def copy(source: str, file: str) -> None:
        inside = Path(source).relative_to(package)
        for copied in earlier:
            if store.same(Path(source), copied / inside):
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(copied / inside, file)
                    return
        shutil.copy2(source, file)

    shutil.copytree(package, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyi"), copy_function=copy)


def update_sources(repository: Path, *more: str) -> None:
    """Bring code and configs of all classifiers in the repository, and of those named, to what the project's are now.

    The caller holds the lock.
    """
    store.copy_sources(repository)
    further = {*store.names(repository), *more} - {ENSEMBLE}
    if further:
        from build_scripts.releases import (
            named_classifiers,  # needs protobuf, which is not there where packages are served
        )

        for name in sorted(further):
            named_classifiers.add(repository, name)


def fingerprint(options: BuildOptions, source: Path) -> str:
    """Twelve hex digits that change whenever the release would: the checkpoint's content, options, code, versions."""
    digest = hashlib.sha256()
    calibration = options.calibration or CALIBRATION
    for path in [*sorted(p for p in source.iterdir() if p.is_file()), *ingredient_modules(), calibration]:
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    asked = {"max_length": options.max_length, "precision": options.precision, "model": options.model}
    versions = {name: version(name) for name in INGREDIENT_PACKAGES}
    here = [platform.machine(), cpu_precisions(), has_gpu()]  # the tokenizers library is a processor's own
    digest.update(json.dumps([asked, versions, here], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def ingredient_modules() -> list[Path]:
    """The modules that decide what a build writes: whole rooms, so that none can be forgotten."""
    return [module for place in INGREDIENTS for module in (sorted(place.glob("*.py")) if place.is_dir() else [place])]


def _checkpoint_directory(options: BuildOptions) -> Path:
    if not options.model:
        return demo_checkpoint()
    from build_scripts.releases.hub import resolve

    return resolve(options.model)


def _fill(staging: Path, options: BuildOptions, source: Path, release_id: str) -> None:
    """Write every artefact of a release."""
    print("loading torch and transformers", flush=True)
    import tokenizers
    import torch

    from build_scripts.convert.checkpoint import load, serving_tokenizer, write_labels
    from build_scripts.convert.gate_texts import calibration_texts
    from build_scripts.convert.verified_file import write_verified

    print(f"reading the checkpoint {source}", flush=True)
    checkpoint = load(source, options.max_length)
    default = not (options.model or options.calibration)
    texts = [text for _, text in headlines("heldout")] if default else calibration_texts(options.calibration)
    facts = write_verified(checkpoint, texts, options.precision, staging)
    serving_tokenizer(checkpoint).save(str(staging / "tokenizer.json"))
    write_labels(checkpoint.labels, staging / "labels.txt")
    copy_package(Path(tokenizers.__file__).parent, staging / "tokenizers", options.repository)
    manifest = {
        "release": release_id,
        "checkpoint": options.model or f"embedded default ({source})",
        "architecture": checkpoint.model.config.model_type,
        "labels": checkpoint.labels,
        "multi_label": checkpoint.multi_label,
        "max_length": checkpoint.max_length,
        **facts,
        "versions": {name: version(name) for name in INGREDIENT_PACKAGES},
        "torch_threads": torch.get_num_threads(),
    }
    (staging / store.MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")


def require_release(repository: Path, name: str = ENSEMBLE) -> dict:
    """The manifest of the live release. Raises ServingError if the classifier cannot be served yet."""
    live = store.live_release(repository, name)
    if live is None:
        where = "" if repository.resolve() == SOURCE_REPOSITORY else f" MODEL_REPOSITORY={repository}"
        where += "" if name == ENSEMBLE else f" NAME={name}"
        raise ServingError(f"{repository} holds no built release; run `make repo{where}` first")
    return store.read_manifest(live)
