"""`make tune`: settings, choice and the written config. Speed is not tested."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from build_scripts.benchmarks import tune
from build_scripts.benchmarks.tune import Setting
from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases.store import CONFIG


@pytest.mark.parametrize("cores", [1, 2, 3, 6, 8, 64, 96])
def test_settings_fill_the_cores_and_no_more(cores):
    found = tune.candidates(cores)
    assert all(1 <= instances * threads <= cores for instances, threads in found)
    assert len(set(found)) == len(found)
    assert (1, cores) in found
    assert all(threads > cores / instances - 1 for instances, threads in found if instances > 1)


def setting(instances: int, latency: float, throughput: float, tail: float) -> Setting:
    return Setting(instances, 2, [tail], [throughput], {load: [latency] for load in tune.ALONE})


ONE, TWO, FOUR = setting(1, 2.0, 100, 30), setting(2, 2.05, 150, 40), setting(4, 4.0, 200, 90)


@pytest.mark.parametrize(
    ("aim", "limit", "best"),
    [
        ("latency", None, TWO),  # as fast as ONE to within 3 %, and serves more
        ("throughput", None, FOUR),
        ("throughput", 50, TWO),
        ("throughput", 30, ONE),
    ],
)
def test_best_setting_by_aim_and_limit(aim, limit, best):
    assert tune.choose([ONE, TWO, FOUR], aim, limit) is best


def test_unreachable_limit_names_the_lowest_tail():
    with pytest.raises(ServingError, match=r"P99_MS=10 .* the lowest is 30 ms"):
        tune.choose([ONE, TWO, FOUR], "latency", 10)


@pytest.fixture
def repository(tmp_path) -> Path:
    shutil.copytree(SOURCE_REPOSITORY / CLASSIFIER, tmp_path / CLASSIFIER, symlinks=True)
    return tmp_path


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def test_written_config_is_valid_and_keeps_the_rest(repository):
    file = repository / CLASSIFIER / CONFIG
    before = tune.read_config(repository)
    file.write_text(
        tune.written(before, Setting(4, 8), f"{tune.BEGIN} for AIM=latency on a machine."), encoding="utf-8"
    )
    config = parsed(file.read_text(encoding="utf-8"))
    assert [(group.kind, group.count) for group in config.instance_group] == [(ModelInstanceGroup.KIND_CPU, 4)]
    assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "8"
    del config.parameters["INTRA_OP_THREAD_COUNT"], config.instance_group[:]
    assert config == parsed(before)


def test_second_run_replaces_the_first_choice(repository):
    file = repository / CLASSIFIER / CONFIG
    before = tune.read_config(repository)
    for instances in (4, 2):
        text = tune.written(tune.read_config(repository), Setting(instances, 1), tune.BEGIN)
        file.write_text(text, encoding="utf-8")
    assert parsed(text).instance_group[0].count == 2
    assert tune.read_config(repository).strip() == before.strip()


def test_users_own_setting_is_kept(repository):
    file = repository / CLASSIFIER / CONFIG
    with file.open("a", encoding="utf-8") as config:
        config.write("instance_group [ { kind: KIND_CPU, count: 3 } ]\n")
    with pytest.raises(ServingError, match="sets instance_group already; remove it"):
        tune.read_config(repository)


def test_unknown_aim_is_an_error(repository):
    with pytest.raises(ServingError, match="AIM=both; expected one of latency, throughput"):
        tune.tune(repository, ["text"], "both", None, 1.0)
