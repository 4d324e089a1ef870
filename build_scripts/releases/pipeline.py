"""The whole build: checkpoint -> verified TorchScript -> a release in the model repository."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from build_scripts.convert.error_guard import refusing
from build_scripts.core.options import BuildOptions
from build_scripts.releases import store
from build_scripts.releases.default_model import demo_checkpoint, headlines
from build_scripts.releases.files import copy_tree, digest, same
from build_scripts.releases.fingerprint import DEFAULT_CHECKPOINT, INGREDIENT_PACKAGES, checkpoint_name, fingerprint
from build_scripts.releases.sources import update_sources


@dataclass(frozen=True)
class Built:
    """A complete release. changed: False if it was live already."""

    release: Path
    manifest: dict
    changed: bool


def build(options: BuildOptions) -> Built:
    """Bring the repository to what the options ask for, doing only what is missing. Raises ServingError."""
    return _build(options, switch=True)


def build_release(options: BuildOptions) -> Built:
    """Make sure that the release exists, without switching to it. changed: whether the live one is another."""
    return _build(options, switch=False)


def _build(options: BuildOptions, *, switch: bool) -> Built:
    store.refuse_package(options.repository)
    source = _checkpoint_directory(options)
    # One lock for both steps: a release that is not live yet is the first that another build would remove.
    with store.locked(options.repository):
        release = _make_release(options, source)
        changed = store.live_release(options.repository, options.name) != release.resolve()
        if changed and switch:
            store.switch(options.repository, release.name, options.name)
            store.prune(options.repository, options.name)
        return Built(release, store.read_manifest(release), changed)


def _make_release(options: BuildOptions, source: Path) -> Path:
    """The release's directory, filled now unless it is there and whole. The caller holds the lock."""
    with refusing(source, "reading it"):
        release_id = fingerprint(options, source)
    update_sources(options.repository, options.name)
    release = store.releases_directory(options.repository, options.name) / release_id
    if (release / store.MANIFEST).is_file():
        file = store.damaged(store.read_manifest(release), release.joinpath)
        if file is None:
            return release
        print(f"{file} is not the file that release {release_id} was built with; building it again", flush=True)
    with (
        store.staged(options.repository, release_id, options.name) as staging,
        refusing(source, "building a release of it"),
    ):
        _fill(staging, options, source, release_id)
    return release


def copy_package(package: Path, target: Path, repository: Path) -> None:
    """A copy of the tokenizers package. Files that another release has, too, become hard links to those.

    Its 10 MB then lie on the disk once, and once in the memory of all tokenizers.
    """
    earlier = sorted(repository.glob(f"*/releases/*/{target.name}"))

    def copy(source: Path, file: Path) -> None:
        inside = source.relative_to(package)
        for copied in earlier:
            if same(source, copied / inside):
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(copied / inside, file)
                    return
        shutil.copy2(source, file)

    copy_tree(package, target, copy)


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

    from build_scripts.convert.calibrate import calibrate
    from build_scripts.convert.checkpoint import load, longest, serving_tokenizer
    from build_scripts.convert.gate_texts import calibration_texts, gate_texts
    from build_scripts.convert.labels import write_labels
    from build_scripts.convert.verified_file import write_verified

    print(f"reading the checkpoint {source}", flush=True)
    checkpoint = load(source, options.max_length, options.tokenizer, options.documents, options.window_stride)
    temperature = None
    if options.calibrate:
        print(f"fitting a temperature on half of {options.calibrate}", flush=True)
        temperature = {
            "file_sha256": digest(options.calibrate),
            **calibrate(checkpoint, options.calibrate, options.columns),
        }
    default = not (options.model or options.calibration)
    texts = [text for _, text in headlines("heldout")] if default else calibration_texts(options.calibration)
    compared = gate_texts(checkpoint, texts, users=options.calibration is not None)
    facts = write_verified(checkpoint, compared, options.precision, staging)
    serving_tokenizer(checkpoint).save(str(staging / "tokenizer.json"))
    write_labels(checkpoint.labels, staging / "labels.txt")
    copy_package(Path(tokenizers.__file__).parent, staging / "tokenizers", options.repository)
    measured = {
        "checkpoint": options.model or f"{DEFAULT_CHECKPOINT} ({source})",
        "unseen": facts.pop("unseen"),
        "attempts": facts.pop("attempts"),
        "torch_threads": torch.get_num_threads(),
    }
    manifest = {
        "release": release_id,
        "checkpoint": checkpoint_name(options),
        "architecture": checkpoint.model.config.model_type,
        "labels": checkpoint.labels,
        "multi_label": checkpoint.multi_label,
        "score": checkpoint.score,
        "max_length": checkpoint.max_length,
        "longest": longest(checkpoint.model),
        "documents": checkpoint.documents and asdict(checkpoint.documents),
        "temperature": temperature,
        **facts,
        "versions": {name: version(name) for name in INGREDIENT_PACKAGES},
        "files": store.digests(staging),
    }
    for name, content in {store.MANIFEST: manifest, store.MEASURED: measured}.items():
        (staging / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
