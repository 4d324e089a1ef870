"""Write a release into the staging directory, as models that the server can load beside the live ones.

Their configs are the committed ones with other names. Loading them is `release`'s job.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models, is_cached, is_model_or_candidate
from build_scripts.releases.named_classifiers import copy_model, read_config, renamed
from build_scripts.releases.store import CONFIG
from build_scripts.serving.swap.model_control import RELEASE_PARAMETER


def candidate_names(models: Models, release_id: str) -> dict[str, str]:
    """The names under which a release is loaded beside the live one."""
    return {model: f"{model}_{release_id}" for model in models.all}


def is_candidate(models: Models, name: str) -> bool:
    """Whether a model is one that a release of this classifier loads for a while, or that keeps its answers."""
    loaded = name not in models.all and any(is_model_or_candidate(name, model) for model in models.all)
    return loaded or is_cached(name, models.ensemble)


def configured(repository: Path, release_id: str, model: str, names: dict[str, str] | None = None) -> ModelConfig:
    """The config of a model, with the release's id as a parameter.

    The parameter makes Triton load a model again whose files are no newer than those it has read, as those of an older
    release are, and it tells `make status` what is loaded. names: what models are to be called instead.
    """
    file = repository / model / CONFIG
    config = renamed(read_config(file), names or {})
    if config.response_cache.enable:
        raise ServingError(
            f"{file} enables response_cache: Triton keeps cached answers by the model's name, and would give those of "
            "the old release; remove it, and use `make serve CACHE=64M`"
        )
    config.parameters[RELEASE_PARAMETER].string_value = release_id
    return config


def refuse_what_ends_the_server(repository: Path, models: Models, *, embedded: bool) -> None:
    """Raise ServingError if a second classifier, as a release loads one, would take the whole server down.

    embedded: the classifiers are processes of their own, and this is no matter.
    """
    parameter, file = "INTER_OP_THREAD_COUNT", repository / models.classifier / CONFIG
    if not embedded and parameter in configured(repository, "", models.classifier).parameters:
        raise ServingError(
            f"{file} sets {parameter}, which libtorch takes once in a process: in NVIDIA's backend a second classifier "
            "ends the server (exit code 134); remove it, or change the release with `make repo` and a restart"
        )


def stage(repository: Path, models: Models, staging: Path, directory: Path) -> None:
    """Write the candidate's three model directories: copies, whose links lead to this release, not to the live one."""
    names = candidate_names(models, directory.name)
    for model, new_name in names.items():
        target = staging / new_name
        shutil.rmtree(target, ignore_errors=True)
        copy_model(repository / model, target, lambda link: directory.resolve() / Path(link).name)
        config = configured(repository, directory.name, model, names)
        (target / CONFIG).write_text(text_format.MessageToString(config), encoding="utf-8")
