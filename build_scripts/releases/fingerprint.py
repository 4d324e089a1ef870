"""The id of a release: a fingerprint of everything that decides what a build writes."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path

from build_scripts.core.machine import cpu_precisions, has_gpu
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import CALIBRATION, CORPUS, OURS, UNSEEN
from build_scripts.releases.files import digest as digest_of

# A change to one of these changes what a build writes, or could. What prints and stores a release is not among them.
INGREDIENTS = (OURS / "core", OURS / "graph", OURS / "convert")
INGREDIENT_PACKAGES = ("torch", "transformers", "tokenizers")
# The files of a release and what its manifest says. Raise it with every change, which makes all releases stale.
LAYOUT = 4
DEFAULT_CHECKPOINT = "embedded default"


def fingerprint(options: BuildOptions, source: Path) -> str:
    """Twelve hex digits that change whenever the release would: the checkpoint's content, options, code, versions.

    Where the checkpoint lies is not among them: a copy gives the same release.
    """
    digest = hashlib.sha256()
    texts = [CALIBRATION, UNSEEN, CORPUS, *([options.calibration] if options.calibration else [])]
    directories = [source, options.tokenizer] if options.tokenizer else [source]
    files = [file for directory in directories for file in sorted(directory.iterdir()) if file.is_file()]
    for path in [*files, *ingredient_modules(), *texts]:
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    asked = {
        "max_length": options.max_length,
        "precision": options.precision,
        "documents": options.documents and [options.documents, options.window_stride],
        "model": checkpoint_name(options),
        "calibrate": options.calibrate
        and [digest_of(options.calibrate), options.calibrate.suffix, *astuple(options.columns)],
    }
    versions = {name: version(name) for name in INGREDIENT_PACKAGES}
    here = [platform.machine(), cpu_precisions(), has_gpu()]  # the tokenizers library is a processor's own
    digest.update(json.dumps([LAYOUT, asked, versions, here], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def checkpoint_name(options: BuildOptions) -> str:
    """The checkpoint as a package names it: a hub id, or the last part of a directory's path."""
    if not options.model:
        return DEFAULT_CHECKPOINT
    path = Path(options.model).expanduser()
    return path.resolve().name if path.is_dir() else options.model


def ingredient_modules() -> list[Path]:
    """The modules that decide what a build writes: whole rooms, so that none can be forgotten."""
    return [module for place in INGREDIENTS for module in sorted(place.rglob("*.py"))]
