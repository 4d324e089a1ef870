"""Run directories that belong to the test, except where it starts a real server."""

from __future__ import annotations

import os

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.serving.keep import verdict


@pytest.fixture(autouse=True)
def runs(request, monkeypatch, tmp_path) -> str:
    if request.node.get_closest_marker("server"):
        return verdict.RUNS
    monkeypatch.setattr(verdict, "RUNS", os.path.join(tmp_path, "runs"))  # noqa: PTH118 (as the module)
    return verdict.RUNS


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]
