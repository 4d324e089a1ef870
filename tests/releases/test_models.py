"""The models that a server loads are those of the release that it reports, whatever happened to the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models
from build_scripts.core.paths import PROJECT
from build_scripts.releases import store
from build_scripts.releases.models import RELEASE_PARAMETER, damaged_file, serving_models
from build_scripts.releases.package import package
from build_scripts.releases.sources import update_sources
from tests.support.fake_releases import fake_release
from tests.support.trees import snapshot

NAMES = ("text_classifier", "sentiment")


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two classifiers, each with an earlier and a live release."""
    repository = tmp_path / "repository"
    for name in NAMES:
        for release_id in ("a" * 12, "b" * 12):
            fake_release(repository, release_id, name, versions={"tokenizers": version("tokenizers")})
            store.switch(repository, release_id, name)
    update_sources(repository, *NAMES[1:])
    return repository


def served(directory: Path, name: str) -> dict[str, str]:
    """Content of each file of a classifier's models that a release brings."""
    tokenizer, classifier, _ = Models(name).all
    files = {
        "model.pt": directory / classifier / "1" / "model.pt",
        "labels.txt": directory / classifier / "labels.txt",
        "tokenizer.json": directory / tokenizer / "1" / "tokenizer.json",
        "tokenizers/__init__.py": directory / tokenizer / "1" / "tokenizers" / "__init__.py",
    }
    return {part: file.read_text(encoding="utf-8") for part, file in files.items()}


def expected(release_id: str) -> dict[str, str]:
    parts = ("model.pt", "labels.txt", "tokenizer.json", "tokenizers/__init__.py")
    return {part: f"{part} of {release_id}" for part in parts}


def test_models_are_those_of_the_live_release(repository, tmp_path):
    places, ids = serving_models(repository, tmp_path / "run")
    assert (places, ids) == ([tmp_path / "run"], dict.fromkeys(NAMES, "b" * 12))
    assert [served(tmp_path / "run", name) for name in NAMES] == 2 * [expected("b" * 12)]
    store.switch(repository, "a" * 12, "sentiment")
    assert serving_models(repository, tmp_path / "run")[1] == dict(zip(NAMES, ("b" * 12, "a" * 12)))
    assert served(tmp_path / "run", "sentiment") == expected("a" * 12)


def test_every_model_tells_its_release(repository, tmp_path):
    serving_models(repository, tmp_path)
    for model in (model for name in NAMES for model in Models(name).all):
        config = text_format.Parse((tmp_path / model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
        assert config.name == model
        assert config.parameters[RELEASE_PARAMETER].string_value == "b" * 12
        assert config.parameters["precision"].string_value == ("fp32" if model.startswith("tokenizer") else "")


def test_labels_lie_in_the_models_directory(repository, tmp_path):
    """Triton from 26.02 on refuses a label file that a link leads out of it."""
    serving_models(repository, tmp_path / "run")
    labels = tmp_path / "run" / "classifier" / "labels.txt"
    assert labels.resolve().is_relative_to((tmp_path / "run" / "classifier").resolve())


def test_an_edit_of_a_config_is_served(repository, tmp_path):
    config = repository / "tokenizer" / "config.pbtxt"
    config.write_text(config.read_text(encoding="utf-8").replace('"131072"', '"7"'), encoding="utf-8")
    serving_models(repository, tmp_path / "run")
    assert '"7"' in (tmp_path / "run" / "tokenizer" / "config.pbtxt").read_text(encoding="utf-8")


def test_models_that_are_up_to_date_are_not_written(repository, tmp_path):
    """So that a server restarts on a full disk."""
    serving_models(repository, tmp_path / "run")
    before = {path: path.lstat().st_ctime_ns for path in (tmp_path / "run").rglob("*")}
    serving_models(repository, tmp_path / "run")
    assert {path: path.lstat().st_ctime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize("file", ["classifier/1/model.pt", "classifier/labels.txt", "tokenizer/1/tokenizer.json"])
def test_a_file_in_a_models_place_is_not_served(repository, tmp_path, file):
    (repository / file).parent.mkdir(exist_ok=True)
    (repository / file).write_text("another model", encoding="utf-8")
    serving_models(repository, tmp_path / "run")
    assert served(tmp_path / "run", "text_classifier") == expected("b" * 12)


def test_a_copy_that_follows_links_serves_the_same(repository, tmp_path):
    subprocess.run(["cp", "-rL", repository, tmp_path / "copy"], check=True)
    shutil.rmtree(repository)
    assert serving_models(tmp_path / "copy", tmp_path / "run")[1] == dict.fromkeys(NAMES, "b" * 12)
    assert served(tmp_path / "run", "sentiment") == expected("b" * 12)


@pytest.mark.parametrize("part", ["model.pt", "labels.txt", "tokenizers/__init__.py"])
def test_a_release_with_another_file_is_refused_in_one_line(repository, tmp_path, part):
    file = store.live_release(repository, "sentiment") / part
    file.write_text("another model", encoding="utf-8")
    assert damaged_file(repository, "sentiment") == file
    with pytest.raises(ServingError, match=f"{part} is not the file that release {'b' * 12} was built") as refusal:
        serving_models(repository, tmp_path / "run")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ServingError, match="was built with"):
        package(repository, tmp_path / "package")
    file.unlink()
    assert damaged_file(repository, "sentiment") == file


def test_a_package_is_served_as_it_is(tiny_repository, tmp_path):
    """It may lie on a file system that cannot be written to."""
    models = package(tiny_repository, tmp_path / "package").directory / "model_repository"
    before = snapshot(models)
    (tmp_path / "run").mkdir()
    places, ids = serving_models(models, tmp_path / "run")
    assert places == [models, tmp_path / "run"]
    assert ids == {"text_classifier": store.live_release(tiny_repository).name}
    assert snapshot(models) == before
    assert not list((tmp_path / "run").iterdir())
    config = (models / "classifier" / "config.pbtxt").read_text(encoding="utf-8")
    parameters = text_format.Parse(config, ModelConfig()).parameters
    assert parameters[RELEASE_PARAMETER].string_value == ids["text_classifier"]


def test_a_package_with_another_file_is_refused_in_one_line(tiny_repository, tmp_path):
    models = package(tiny_repository, tmp_path / "package").directory / "model_repository"
    (models / "classifier" / "1" / "model.pt").write_bytes(b"another model")
    with pytest.raises(ServingError, match=r"model\.pt is not the file that the package was made with"):
        serving_models(models, tmp_path / "run")


def test_nothing_is_served_before_something_is_built(tmp_path):
    with pytest.raises(ServingError, match="holds no built release; run `make repo"):
        serving_models(tmp_path, tmp_path / "run")


def test_serving_imports_nothing_that_builds():
    """An image that serves a package has no torch for the launcher, no transformers and no tqdm."""
    code = """
import sys
import build_scripts.serving.keep.supervisor, build_scripts.serving.serve, build_scripts.serving.doctor
print(*(name for name in sys.modules if name.startswith(("build_scripts.convert", "build_scripts.graph"))))
print(*{"tqdm", "torch", "transformers", "rich", "build_scripts.releases.pipeline"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
