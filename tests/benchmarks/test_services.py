"""The services that benchmarks measure."""

from __future__ import annotations

import pytest

from build_scripts.benchmarks import services
from build_scripts.serving.start.installation import find_installation


@pytest.mark.server
def test_a_built_repository_is_served_without_a_supervisor(tiny_repository, tmp_path):
    with services.ensemble("tiny", find_installation(), tiny_repository, tmp_path / "ensemble.log") as service:
        assert len(service.ask(["one text", "and another"])) == 2
