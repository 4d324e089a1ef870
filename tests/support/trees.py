"""Look at whole directories: are two the same, is a model repository complete."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


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
    """The live release's id, after a check that a server could load all of it from inside the repository."""
    live = (repository / classifier / "live").resolve(strict=True)
    manifest = json.loads((live / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["release"] == live.name
    labels = (live / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == manifest["labels"]
    for name in (
        "text_classifier/config.pbtxt",
        "text_classifier/1",
        "tokenizer/config.pbtxt",
        "tokenizer/1/model.py",
        "tokenizer/1/tokenizer.json",
        "tokenizer/1/tokenizers/__init__.py",
        "tokenizer/1/tokenizers/tokenizers.abi3.so",
        "classifier/config.pbtxt",
        "classifier/labels.txt",
        "classifier/1/model.pt",
    ):
        model, _, rest = name.partition("/")
        if classifier != "text_classifier":
            model = classifier if model == "text_classifier" else f"{model}_{classifier}"
        resolved = (repository / model / rest).resolve(strict=True)
        built = not name.endswith((".pbtxt", "model.py", "text_classifier/1"))
        assert resolved.is_relative_to(live if built else repository.resolve()), name
        assert resolved.is_dir() or resolved.stat().st_size > 0, name
    return live.name


def leftovers(repository: Path) -> list[Path]:
    return [path for path in repository.rglob(".*") if not path.name.endswith(".lock")]
