"""TOKENIZER: a checkpoint whose tokenizer lies in another directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from build_scripts.convert.checkpoint import load
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases.fingerprint import fingerprint
from tests.support.checkpoints import make_checkpoint
from tests.support.damages import edit, mlflow

pytestmark = pytest.mark.usefixtures("one_thread")


def test_takes_the_tokenizer_from_another_directory(tmp_path):
    """As MLflow's transformers flavour stores it."""
    mlflow(make_checkpoint("bert", tmp_path / "checkpoint"))
    model, tokenizer = tmp_path / "checkpoint" / "model", tmp_path / "checkpoint" / "components" / "tokenizer"
    with pytest.raises(ServingError, match=f"has no tokenizer .* TOKENIZER={tokenizer}"):
        load(model)
    own = load(model, tokenizer_path=tokenizer)
    expected = load(make_checkpoint("bert", tmp_path / "whole"))
    assert torch.equal(own.logits("some words"), expected.logits("some words"))
    with pytest.raises(ServingError, match="TOKENIZER=/no/where: no such directory"):
        BuildOptions(model=str(model), tokenizer=Path("/no/where"))
    with pytest.raises(ServingError, match=f"TOKENIZER={tokenizer}: MODEL is missing"):
        BuildOptions(tokenizer=tokenizer)


def test_release_depends_on_the_tokenizer(tmp_path):
    mlflow(make_checkpoint("bert", tmp_path / "checkpoint"))
    model, tokenizer = tmp_path / "checkpoint" / "model", tmp_path / "checkpoint" / "components" / "tokenizer"
    options = BuildOptions(model=str(model), tokenizer=tokenizer)
    before = fingerprint(options, model)
    edit(tokenizer / "tokenizer_config.json", model_max_length=64)
    assert fingerprint(options, model) != before
