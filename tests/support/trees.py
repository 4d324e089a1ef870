"""Look at whole directories: are two the same, is a model repository complete."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from build_scripts.core.names import Models
from build_scripts.releases.models import put_together
from build_scripts.releases.store import live_release


def snapshot(directory: Path) -> dict[str, str]:
    """Relative path -> what is there: a file's hash, a link's target, or a directory. Locks are left out."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name.endswith(".lock"):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "directory"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_complete(repository: Path, classifier: str = "text_classifier") -> str:
    """The live release's id, after a check that the models that a server loads are complete."""
    live = live_release(repository, classifier)
    assert live is not None
    manifest = json.loads((live / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["release"] == live.name
    assert (live / "labels.txt").read_text(encoding="utf-8").splitlines() == manifest["labels"]
    with tempfile.TemporaryDirectory() as directory:
        put_together(repository, classifier, live, Path(directory))
        tokenizer, own, ensemble = Models(classifier).all
        for name in (
            f"{ensemble}/config.pbtxt",
            f"{ensemble}/1",
            f"{tokenizer}/config.pbtxt",
            f"{tokenizer}/1/model.py",
            f"{tokenizer}/1/tokenizer.json",
            f"{tokenizer}/1/tokenizers/__init__.py",
            f"{tokenizer}/1/tokenizers/tokenizers.abi3.so",
            f"{own}/config.pbtxt",
            f"{own}/labels.txt",
            f"{own}/1/model.pt",
        ):
            resolved = (Path(directory) / name).resolve(strict=True)
            assert resolved.is_relative_to(live) or resolved.is_relative_to(Path(directory).resolve()), name
            assert resolved.is_dir() or resolved.stat().st_size > 0, name
    return live.name


def leftovers(repository: Path) -> list[Path]:
    return [path for path in repository.rglob(".*") if not path.name.endswith(".lock")]
