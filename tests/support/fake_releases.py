"""Releases that need no model: a manifest and a file."""

from __future__ import annotations

import json
from pathlib import Path

from build_scripts.core.names import ENSEMBLE
from build_scripts.releases import store


def fake_release(repository: Path, name: str, classifier: str = ENSEMBLE) -> None:
    with store.staged(repository, name, classifier) as staging:
        (staging / "model.pt").write_bytes(b"model")
        (staging / store.MANIFEST).write_text(json.dumps({"release": name}), encoding="utf-8")


def go_live(repository: Path, name: str) -> None:
    store.switch(repository, name)
