"""Bring what people write, the configs and the tokenizer's code, from the project to a model repository.

A config that somebody edited in the repository stays.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases import store
from build_scripts.releases.files import copy_whole, same
from build_scripts.releases.models import PARTS, code
from build_scripts.releases.store import CONFIG

# The config as a build copied it; an edit makes the two differ.
COPIED_CONFIG = "config.pbtxt.copied"


def update_sources(repository: Path, *more: str) -> None:
    """Update code and configs of all classifiers in the repository, and of those named. The caller holds the lock."""
    copy_sources(repository)
    further = sorted({*store.names(repository), *more} - {ENSEMBLE})
    if further:
        # Needs protobuf, which is not there where packages are served.
        from build_scripts.releases import named_classifiers

        for name in further:
            named_classifiers.add(repository, name)
    for name in (ENSEMBLE, *further):
        remove_earlier_links(repository, name)


def copy_sources(repository: Path) -> None:
    """Give a repository that is not the project's own the project's configs and code."""
    if repository.resolve() == SOURCE_REPOSITORY:
        return
    for model in Models().all:
        source, own = SOURCE_REPOSITORY / model, repository / model
        (own / "1").mkdir(parents=True, exist_ok=True)
        for path, file in code(SOURCE_REPOSITORY, model):
            if not same(file, own / path):
                copy_whole(file, own / path)
        config, copied = own / CONFIG, own / COPIED_CONFIG
        if config.exists() and not any(same(config, other) for other in (source / CONFIG, copied)):
            print(f"{config} differs from the project's and is kept; remove it to get the project's", flush=True)
        else:
            copy_whole(source / CONFIG, config)
        copy_whole(source / CONFIG, copied)


def remove_earlier_links(repository: Path, name: str) -> None:
    """Remove the links into a release, and the code beside them, that an earlier layout had in each model."""
    for kind, model in zip(Models().all, Models(name).all):
        for path in PARTS[kind]:
            if (link := repository / model / path).is_symlink():
                link.unlink()
        if name != ENSEMBLE and (repository / model / COPIED_CONFIG).is_file():
            shutil.rmtree(repository / model / "1", ignore_errors=True)
