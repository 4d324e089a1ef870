"""Write a release into the staging directory, as models that the server can load beside the live ones.

Their configs are the committed ones with other names. Loading them is `release`'s job.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.build.releases import CONFIG
from build_scripts.serving.model_control import RELEASE_PARAMETER
from build_scripts.settings import CLASSIFIER, ENSEMBLE, TOKENIZER, ServingError


def candidate_names(release_id: str) -> dict[str, str]:
    """The names under which a release is loaded beside the live one."""
    return {name: f"{name}_{release_id}" for name in (TOKENIZER, CLASSIFIER, ENSEMBLE)}


def configured(
    repository: Path, release_id: str, name: str, *, rename: bool = False, models: dict[str, str] | None = None
) -> ModelConfig:
    """The committed config of a model, with the release's id as a parameter.

    The parameter makes Triton load a model again whose files are no newer than those it has read, as those of an older
    release are, and it tells `make status` what is loaded. models: what the ensemble's steps are to be called instead.
    """
    file = repository / name / CONFIG
    try:
        config = text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    except text_format.ParseError as error:
        raise ServingError(f"{file} is no model configuration: {error}; mend it") from error
    if config.response_cache.enable:
        raise ServingError(
            f"{file} enables response_cache: Triton keeps cached answers by the model's name, and would give those of "
            "the old release; remove it, and use `make serve CACHE=64M`"
        )
    config.parameters[RELEASE_PARAMETER].string_value = release_id
    if rename:
        config.name = candidate_names(release_id)[name]
    for step in config.ensemble_scheduling.step:
        step.model_name = (models or {}).get(step.model_name, step.model_name)
    return config


def refuse_what_ends_the_server(repository: Path, *, embedded: bool) -> None:
    """Raise ServingError if a second classifier, as a release loads one, would take the whole server down.

    embedded: the classifiers are processes of their own, and this is no matter.
    """
    parameter, file = "INTER_OP_THREAD_COUNT", repository / CLASSIFIER / CONFIG
    if not embedded and parameter in configured(repository, "", CLASSIFIER).parameters:
        raise ServingError(
            f"{file} sets {parameter}, which libtorch takes once in a process: in NVIDIA's backend a second classifier "
            "ends the server (exit code 134); remove it, or change the release with `make repo` and a restart"
        )


def stage(repository: Path, staging: Path, directory: Path) -> None:
    """Write the candidate's three model directories: copies, whose links lead to this release, not to the live one."""
    names = candidate_names(directory.name)
    ignored = shutil.ignore_patterns("live", "releases", "__pycache__", CONFIG, ".*")
    for name, new_name in names.items():
        target = staging / new_name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(repository / name, target, symlinks=True, ignore=ignored)
        for link in [path for path in target.rglob("*") if path.is_symlink()]:
            artefact = directory.resolve() / Path(os.readlink(link)).name
            link.unlink()
            link.symlink_to(artefact)
        config = configured(repository, directory.name, name, rename=True, models=names)
        (target / CONFIG).write_text(text_format.MessageToString(config), encoding="utf-8")
