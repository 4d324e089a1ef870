"""A checkout is complete whatever git's settings and the copying tool do to links and line ends."""

from __future__ import annotations

import subprocess

import pytest

from build_scripts.core.paths import PROJECT

pytestmark = pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="no git checkout")


def git(*arguments: object) -> str:
    return subprocess.run(["git", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_no_link_is_committed():
    """`cp -rL` follows links, core.symlinks=false writes text files in their place."""
    entries = git("-C", PROJECT, "ls-files", "--stage").splitlines()
    assert entries
    assert [entry for entry in entries if entry.startswith("120000")] == []


def test_scripts_keep_their_line_ends(tmp_path):
    """sh and make do not run files with CR LF."""
    git("clone", "--quiet", "--no-hardlinks", "--config", "core.autocrlf=true", PROJECT, tmp_path / "clone")
    for file in ("Makefile", "build_scripts/install.sh", ".ci/run", "build_scripts/data/calibration.txt"):
        assert b"\r" not in (tmp_path / "clone" / file).read_bytes(), file
