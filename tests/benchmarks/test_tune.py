"""`make tune` tries what a machine can do, chooses by the aim, and writes what Triton can read. Speed is not tested."""

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
def test_no_setting_has_more_threads_than_cores_and_one_uses_them_all(cores):
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
def test_the_best_keeps_the_limit_and_what_is_level_is_decided_by_the_other_aim(aim, limit, best):
    assert tune.choose([ONE, TWO, FOUR], aim, limit) is best


def test_a_limit_that_nothing_keeps_is_an_error_that_says_what_could_be_kept():
    with pytest.raises(ServingError, match=r"P99_MS=10 .* the lowest is 30 ms"):
        tune.choose([ONE, TWO, FOUR], "latency", 10)


@pytest.fixture
def repository(tmp_path) -> Path:
    shutil.copytree(SOURCE_REPOSITORY / CLASSIFIER, tmp_path / CLASSIFIER, symlinks=True)
    return tmp_path


def parsed(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def test_what_is_written_is_what_triton_reads_and_the_rest_stays(repository):
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


def test_another_run_replaces_what_an_earlier_one_chose(repository):
    file = repository / CLASSIFIER / CONFIG
    before = tune.read_config(repository)
    for instances in (4, 2):
        text = tune.written(tune.read_config(repository), Setting(instances, 1), tune.BEGIN)
        file.write_text(text, encoding="utf-8")
    assert parsed(text).instance_group[0].count == 2
    assert tune.read_config(repository).strip() == before.strip()


def test_what_the_user_wrote_is_not_overwritten(repository):
    file = repository / CLASSIFIER / CONFIG
    with file.open("a", encoding="utf-8") as config:
        config.write("instance_group [ { kind: KIND_CPU, count: 3 } ]\n")
    with pytest.raises(ServingError, match="sets instance_group already; remove it"):
        tune.read_config(repository)


def test_an_aim_it_does_not_know_is_an_error(repository):
    with pytest.raises(ServingError, match="AIM=both; expected one of latency, throughput"):
        tune.tune(repository, ["text"], "both", None, 1.0)
