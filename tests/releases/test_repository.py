"""The committed configs fit each other, the files of a release and the published contract."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from build_scripts.core.names import CLASSIFIER, ENSEMBLE, TOKENIZER
from build_scripts.core.paths import SOURCE_REPOSITORY
from build_scripts.releases.models import serving_models
from tests.support import fake_triton
from tests.support.waiting import HANG_S

MODELS = (ENSEMBLE, TOKENIZER, CLASSIFIER)
NUMPY_TYPES = {"TYPE_INT64": np.int64, "TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_BOOL": np.bool_}
TEXTS = {"TEXT": ("TYPE_STRING", [1]), "TEXT_PAIR": ("TYPE_STRING", [1])}
# Returned beside the class id: facts about the text.
TOLD = {"TOKENS": ("TYPE_INT32", [1]), "TRUNCATED": ("TYPE_BOOL", [1])}


def config(model: str) -> ModelConfig:
    text = (SOURCE_REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, ModelConfig())


def tensors(specs) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and dims."""
    return {spec.name: (DataType.Name(spec.data_type), list(spec.dims)) for spec in specs}


def optional(own: ModelConfig) -> set[str]:
    return {spec.name for spec in own.input if spec.optional}


# Clients were written against this.
CONTRACT = {
    "text_classifier": (
        "ensemble",
        TEXTS,
        {"CLASS_ID": ("TYPE_INT64", [1]), "PROBABILITIES": ("TYPE_FP32", [-1]), **TOLD},
    ),
    "tokenizer": (
        "python",
        TEXTS,
        {"INPUT_IDS": ("TYPE_INT64", [-1]), "ATTENTION_MASK": ("TYPE_INT64", [-1]), **TOLD},
    ),
    "classifier": (
        "pytorch_libtorch",
        {"INPUT__0": ("TYPE_INT64", [-1]), "INPUT__1": ("TYPE_INT64", [-1])},
        {"OUTPUT__0": ("TYPE_INT64", [1]), "OUTPUT__1": ("TYPE_FP32", [-1])},
    ),
}


def test_models_are_those_of_the_contract():
    # Configs of other names have the file that they were copied from beside them.
    made = {path.parent.name for path in SOURCE_REPOSITORY.glob("*/config.pbtxt.copied")}
    directories = {path.name for path in SOURCE_REPOSITORY.iterdir() if path.is_dir()} - made
    assert directories == set(CONTRACT) == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_model_keeps_its_contract(model):
    own = config(model)
    backend, inputs, outputs = CONTRACT[model]
    assert own.name == model
    assert (own.platform or own.backend) == backend
    assert tensors(own.input) == inputs
    assert tensors(own.output) == outputs
    assert optional(own) == inputs.keys() & {"TEXT_PAIR"}


def test_models_take_the_same_batches():
    limits = {config(model).max_batch_size for model in MODELS}
    assert len(limits) == 1
    assert limits.pop() > 1
    assert all(config(model).HasField("dynamic_batching") for model in (TOKENIZER, CLASSIFIER))


def test_steps_of_the_ensemble_fit():
    """Every tensor is produced once, before it is read, with the type and shape that its reader declares."""
    ensemble = config(ENSEMBLE)
    known = tensors(ensemble.input)
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [TOKENIZER, CLASSIFIER]
    for step in steps:
        inputs, outputs = tensors(config(step.model_name).input), tensors(config(step.model_name).output)
        assert set(step.input_map) == set(inputs)
        for name, source in step.input_map.items():
            assert known[source] == inputs[name]
        assert optional(ensemble) & set(step.input_map) <= optional(config(step.model_name))
        for name, target in step.output_map.items():
            assert target not in known
            known[target] = outputs[name]
    for name, spec in tensors(ensemble.output).items():
        assert known[name] == spec


def test_ids_and_mask_are_not_swapped():
    """Type and shape are equal: swapped inputs would load."""
    tokenizer, classifier = config(ENSEMBLE).ensemble_scheduling.step
    assert classifier.input_map["INPUT__0"] == tokenizer.output_map["INPUT_IDS"]
    assert classifier.input_map["INPUT__1"] == tokenizer.output_map["ATTENTION_MASK"]
    assert dict(classifier.output_map) == {"OUTPUT__0": "CLASS_ID", "OUTPUT__1": "PROBABILITIES"}


@pytest.fixture(scope="module")
def models(tiny_repository, tmp_path_factory) -> Path:
    """The models of the tiny repository, as a server loads them."""
    directory = tmp_path_factory.mktemp("models")
    serving_models(tiny_repository, directory)
    return directory


def test_ensemble_pins_existing_versions(models):
    """With "the latest", the tokenizer of one release could meet the classifier of another."""
    for step in config(ENSEMBLE).ensemble_scheduling.step:
        assert (models / step.model_name / str(step.model_version)).is_dir()


def test_model_file_gives_what_the_classifier_declares(models):
    own = config(CLASSIFIER)
    file = torch.jit.load(str(models / "classifier" / "1" / "model.pt"))
    batch = 3
    inputs = [torch.ones((batch, 5), dtype=torch.int64) for spec in own.input if spec.data_type == DataType.TYPE_INT64]
    with torch.inference_mode():
        outputs = file(*inputs)
    labels = (models / "classifier" / own.output[1].label_filename).read_text(encoding="utf-8").splitlines()
    assert len(outputs) == len(own.output)
    for output, spec in zip(outputs, own.output):
        assert output.numpy().dtype == NUMPY_TYPES[DataType.Name(spec.data_type)]
        assert list(output.shape) == [batch, *(len(labels) if size == -1 else size for size in spec.dims)]


def test_tokenizer_gives_what_it_declares(models):
    own = config(TOKENIZER)
    parameters = {key: value.string_value for key, value in own.parameters.items()}
    _, model = fake_triton.load_model(models / "tokenizer" / "1", parameters)
    [response] = model.execute([fake_triton.Request(TEXT=np.array([[b"one"], [b"two"]], dtype=np.object_))])
    assert set(response.outputs) == {spec.name for spec in own.output}
    for spec in own.output:
        assert response.outputs[spec.name].dtype == NUMPY_TYPES[DataType.Name(spec.data_type)]
        assert response.outputs[spec.name].shape == (2, *(128 if size == -1 else size for size in spec.dims))


def test_tokenizer_reads_every_parameter_of_its_config():
    code = (SOURCE_REPOSITORY / "tokenizer" / "1" / "model.py").read_text(encoding="utf-8")
    assert set(re.findall(r'parameters\["(\w+)"\]', code)) == set(config(TOKENIZER).parameters)


def test_tokenizer_needs_numpy_only(models, subject, tmp_path):
    """Inside the server there is only numpy, and the files beside the tokenizer."""
    for needed in (*Path(np.__file__).parents[1].glob("numpy*"), Path(fake_triton.__file__)):
        (tmp_path / needed.name).symlink_to(needed)
    parameters = {key: value.string_value for key, value in config(TOKENIZER).parameters.items()}
    script = f"""
import sys
sys.path.append({str(tmp_path)!r})
import pathlib, fake_triton, numpy
_, model = fake_triton.load_model(pathlib.Path({str(models / "tokenizer" / "1")!r}), {parameters!r})
[response] = model.execute([fake_triton.Request(TEXT=numpy.array([[b"banks report"]], dtype=object))])
print(response.outputs["INPUT_IDS"][0].tolist())
"""
    # -S: without site-packages.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", script], capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    expected = subject("bert").tokenizer("banks report", padding="max_length", max_length=128)["input_ids"]
    assert json.loads(done.stdout) == expected


def test_tokenizers_package_runs_on_other_pythons(models):
    package = (models / "tokenizer" / "1" / "tokenizers").resolve()
    libraries = [path.name for path in package.rglob("*.so")]
    assert libraries == ["tokenizers.abi3.so"]
    assert not list(package.rglob("*.pyc"))


def test_model_file_is_torchscript(models):
    """Not pickled by torch.save: Triton's C++ backend reads it."""
    with zipfile.ZipFile(models / "classifier" / "1" / "model.pt") as archive:
        assert any("/code/" in name for name in archive.namelist())
