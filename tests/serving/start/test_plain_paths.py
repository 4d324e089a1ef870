"""Directories get names that Triton's launcher and its python processes can read."""

from __future__ import annotations

import subprocess

import pytest

from build_scripts.serving.start.arguments import PLAIN, plain


@pytest.mark.parametrize(
    "name", ["a b", "\u00fc", "\u4e2d\u6587", "it's", "$(id)", "a:b", "a;b", "a\nb", "*", "~", "#"]
)
def test_a_path_with_special_characters_gets_a_plain_name(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("found")
    found = plain(tmp_path / name)
    assert PLAIN.fullmatch(found)
    # By another process, in a shell, without quotes.
    shell = subprocess.run(["sh", "-c", f"cat {found}/file"], capture_output=True, text=True, check=True)
    assert shell.stdout == "found"


def test_a_plain_path_stays(tmp_path):
    assert plain(tmp_path) == str(tmp_path.resolve())


def test_one_directory_gets_one_name(tmp_path):
    (tmp_path / "a b").mkdir()
    assert plain(tmp_path / "a b") == plain(tmp_path / "a b")
