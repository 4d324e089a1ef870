"""Errors that nobody foresaw while a checkpoint is read: one line, whatever raised them."""

from __future__ import annotations

import os

import pytest

from build_scripts.convert import checkpoint as checkpoint_module
from build_scripts.convert.error_guard import refusing
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases import pipeline
from tests.support.checkpoints import make_checkpoint
from tests.support.damages import tokenizer_config, write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "damage", [tokenizer_config(tokenizer_class="LayoutLMv3Tokenizer"), write("config.json", "[" * 10**5)]
)
def test_unforeseen_content_ends_in_one_line(damage, tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    damage(directory)
    with pytest.raises(ServingError, match=r"cannot be served: .* failed \(\w+: ") as refused:
        pipeline.build(BuildOptions(model=str(directory), repository=tmp_path / "repository"))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "error", [ValueError("one\ntwo"), RecursionError(), MemoryError(), KeyError("k"), OSError(5, "io")]
)
def test_any_error_of_reading_ends_in_one_line(error, subject, tmp_path, monkeypatch):
    def explode(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint_module, "load", explode)
    repository = tmp_path / "repository"
    with pytest.raises(ServingError, match=r"cannot be served: .* failed \(\w+: ") as refused:
        pipeline.build(BuildOptions(model=str(subject("bert").directory), repository=repository))
    assert len(str(refused.value).splitlines()) == 1
    assert type(error).__name__ in str(refused.value)
    assert not list((repository / "text_classifier" / "releases").iterdir())


def test_rust_panic_is_one_line_and_interrupts_pass(tmp_path):
    class PanicException(BaseException):
        """pyo3's panic, which is no Exception."""

    with pytest.raises(ServingError, match="PanicException: out of bounds"), refusing(tmp_path, "reading it"):
        raise PanicException("out of bounds")
    for passed in (KeyboardInterrupt, SystemExit):
        with pytest.raises(passed), refusing(tmp_path, "reading it"):
            raise passed


def test_reports_a_full_disk(subject, tmp_path, monkeypatch):
    def explode(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "load", explode)
    with pytest.raises(ServingError, match="no space left in"):
        pipeline.build(BuildOptions(model=str(subject("bert").directory), repository=tmp_path / "repository"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_one_line(tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    (directory / "model.safetensors").chmod(0)
    with pytest.raises(ServingError, match="Permission denied"):
        pipeline.build(BuildOptions(model=str(directory), repository=tmp_path / "repository"))
