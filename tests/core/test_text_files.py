"""Files of texts: the same lines from every file and from standard input."""

from __future__ import annotations

import codecs
import io
import sys
from itertools import islice

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.text_files import read_lines


def test_byte_order_mark_is_not_text(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"one\n\xef\xbb\xbftwo\n")
    assert list(read_lines("FILE", path)) == ["one", "\ufefftwo"]  # inside a file it is a character


def test_byte_order_mark_alone_is_an_empty_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(codecs.BOM_UTF8)
    assert list(read_lines("CALIBRATION", path)) == [""]


@pytest.mark.parametrize("before", [0, 1, 5_000])
def test_error_names_the_line(before, tmp_path):
    """Also beyond the first chunk of a text decoder, which counts bytes from its start."""
    path = tmp_path / "texts.txt"
    path.write_bytes(b"a line of text\n" * before + b"caf\xe9\n" + b"more\n" * 3)
    with pytest.raises(ServingError, match=rf"FILE=.*: line {before + 1} is not UTF-8 \(at byte 4\); convert"):
        list(read_lines("FILE", path))


def test_lines_before_the_bad_one_are_read(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes(b"one\ntwo\n\xff\n")
    assert list(islice(read_lines("FILE", path), 2)) == ["one", "two"]


def test_standard_input_stays_open(tmp_path, monkeypatch):
    path = tmp_path / "texts.txt"
    path.write_bytes(codecs.BOM_UTF8 + b"one\n")
    with path.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        assert list(read_lines("FILE", "-")) == ["one"]
        assert not file.closed
