"""Files are written whole, and a full disk is told by its number."""

from __future__ import annotations

import errno
import os

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.releases.files import copy_whole, digest, is_disk_full, write_whole


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_its_number(tmp_path, number):
    full = OSError(number, "in any language")
    assert is_disk_full(full, tmp_path)
    wrapped = ServingError("building failed")
    wrapped.__cause__ = full
    assert is_disk_full(wrapped, tmp_path)


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "No space left on device"), ServingError("No space left on device")]
)
def test_other_errors_are_no_full_disk(tmp_path, error):
    assert not is_disk_full(error, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_without_a_number_makes_it_ask_the_disk(tmp_path, monkeypatch, number):
    """torch and tokenizers raise types of their own."""
    assert not is_disk_full(RuntimeError("write failed"), tmp_path)

    def refuse(*_: int) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    assert is_disk_full(RuntimeError("write failed"), tmp_path) == (number != errno.EIO)


def test_half_a_file_never_replaces_a_whole_one(tmp_path, monkeypatch):
    target, source = tmp_path / "target", tmp_path / "source"
    target.write_text("old", encoding="utf-8")
    source.write_text("new", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        for write in (lambda: write_whole(target, "new"), lambda: copy_whole(source, target)):
            with pytest.raises(OSError, match="full"):
                write()
    assert target.read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_a_changed_file_has_another_digest(tmp_path):
    file = tmp_path / "file"
    file.write_text("one", encoding="utf-8")
    first = digest(file)
    file.write_text("two", encoding="utf-8")
    assert digest(file) != first
