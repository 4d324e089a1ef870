"""Refusals before a release loads anything into a running server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.serving.swap.staging import refuse_what_ends_the_server

SETTING = 'parameters { key: "INTER_OP_THREAD_COUNT", value: { string_value: "2" } }\n'


@pytest.fixture
def repository(tmp_path) -> Path:
    (tmp_path / "classifier").mkdir()
    shutil.copy(SOURCE_REPOSITORY / "classifier" / "config.pbtxt", tmp_path / "classifier")
    return tmp_path


def test_refuses_a_config_that_would_end_the_server(repository):
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write(SETTING)
    with pytest.raises(ServingError, match=r"sets INTER_OP_THREAD_COUNT.* with `make repo` and a restart") as refusal:
        refuse_what_ends_the_server(repository, Models(), (2, 51, 0))
    assert "\n" not in str(refusal.value)
    for harmless in (None, (2, 67, 0), (2, 71, 0)):
        refuse_what_ends_the_server(repository, Models(), harmless)


def test_accepts_the_projects_config(repository):
    refuse_what_ends_the_server(repository, Models(), (2, 51, 0))
