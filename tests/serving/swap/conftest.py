"""Two releases that no client can mix up."""

from __future__ import annotations

import pytest

from tests.support.checkpoints import make_checkpoint
from tests.support.release_clients import Release


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> dict[str, Release]:
    """Other vocabulary, other labels, other number of classes."""
    english = {"labels": ["one", "two: with a colon", "three"], "seed": 7}
    return {
        "chinese": Release(make_checkpoint("bert-chinese", tmp_path_factory.mktemp("chinese"))),
        "english": Release(make_checkpoint("bert", tmp_path_factory.mktemp("english"), **english)),
    }
