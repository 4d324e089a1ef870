"""Releases that need no model: the files of one, with made-up content."""

from __future__ import annotations

import json
from pathlib import Path

from build_scripts.core.names import ENSEMBLE
from build_scripts.releases import store


def fake_release(repository: Path, release_id: str, name: str = ENSEMBLE, **manifest: object) -> None:
    with store.staged(repository, release_id, name) as staging:
        for file in ("model.pt", "labels.txt", "tokenizer.json", "tokenizers/__init__.py"):
            (staging / file).parent.mkdir(exist_ok=True)
            (staging / file).write_text(f"{file} of {release_id}", encoding="utf-8")
        facts = {"release": release_id, "checkpoint": "a", "precision": "fp32", "files": store.digests(staging)}
        (staging / store.MANIFEST).write_text(json.dumps({**facts, **manifest}), encoding="utf-8")


def go_live(repository: Path, name: str) -> None:
    store.switch(repository, name)
