"""The response cache's size, and the ensemble before it."""

from __future__ import annotations

import types

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models, is_cached
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.serving.start.arguments import cache_arguments
from build_scripts.serving.swap.answer_cache import load_cached, through
from build_scripts.serving.swap.staging import is_candidate


@pytest.mark.parametrize(
    ("size", "expected"), [("64M", 64 * 1024**2), ("1g", 1024**3), ("1048576", 1024**2), (" 2048K ", 2 * 1024**2)]
)
def test_cache_size_is_passed_in_bytes(size, expected):
    assert cache_arguments(size) == [f"--cache-config=local,size={expected}"]


def test_no_cache_by_default():
    assert cache_arguments("") == []


@pytest.mark.parametrize("size", ["0", "64 MB", "-1M", "M", "yes", "1023K", "1.5G"])
def test_rejects_bad_cache_size(size):
    with pytest.raises(ServingError, match=r"^CACHE=.*: expected .*64M or 1G$"):
        cache_arguments(size)


def test_cache_needs_tritonclient(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ServingError, match=r"^CACHE needs the package tritonclient, .*; leave out CACHE$"):
        cache_arguments("64M")


def test_outer_ensemble_maps_all_inputs_and_outputs():
    """Otherwise the cache would keep answers without some outputs for clients that ask for all."""
    config = text_format.Parse((SOURCE_REPOSITORY / ENSEMBLE / "config.pbtxt").read_text(), ModelConfig())
    inputs, outputs = [{tensor.name: tensor.name for tensor in tensors} for tensors in (config.input, config.output)]
    (step,) = through(config, "inner").ensemble_scheduling.step
    assert (step.model_name, dict(step.input_map), dict(step.output_map)) == ("inner", inputs, outputs)
    assert not config.response_cache.enable


def test_each_classifier_has_its_own_cached_ensemble(tmp_path):
    """Otherwise a release of one would remove the other's."""
    loaded: list[str] = []
    control = types.SimpleNamespace(
        state=types.SimpleNamespace(staging=tmp_path), load=lambda model, config=None: loaded.append(model)
    )
    models = Models()
    load_cached(control, SOURCE_REPOSITORY, "0123456789ab", models.ensemble)
    (inner,) = [path.name for path in tmp_path.iterdir()]
    assert loaded == [inner, models.ensemble]
    assert is_cached(inner, models.ensemble)
    assert is_candidate(models, inner)
    for other in ("classifier", "sentiment", "text_classifier_2"):
        assert not is_candidate(Models(other), inner)
