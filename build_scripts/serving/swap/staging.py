"""Candidates: the models of a new release, named after it, which the server loads beside the live models.

Their configs are the repository's with the names replaced. `release` loads them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models, is_cached, is_model_or_candidate
from build_scripts.releases.models import fill, parameters
from build_scripts.releases.named_classifiers import read_config, renamed
from build_scripts.releases.store import CONFIG

# Triton 26.03. From there on NVIDIA's backend sets the thread counts of the first classifier only.
SETS_THREADS_ONCE = (2, 67)


def candidate_names(models: Models, release_id: str) -> dict[str, str]:
    """Each model's name while its release is loaded beside the live one."""
    return {model: f"{model}_{release_id}" for model in models.all}


def is_candidate(models: Models, name: str) -> bool:
    """Whether a model is a candidate of this classifier, or the model that caches its answers."""
    loaded = name not in models.all and any(is_model_or_candidate(name, model) for model in models.all)
    return loaded or is_cached(name, models.ensemble)


def configured(repository: Path, release: Path, model: str, names: dict[str, str] | None = None) -> ModelConfig:
    """The config of a model, with the release's parameters. names: replacements for model names.

    The id among them forces a reload even if the new files are older than the loaded ones. It tells `make status` which
    release is loaded.
    """
    file = repository / model / CONFIG
    config = renamed(read_config(file), names or {})
    if config.response_cache.enable:
        raise ServingError(
            f"{file} enables response_cache: Triton's cache is keyed by model name and would return the old release's "
            "answers; remove response_cache, and use `make serve CACHE=64M`"
        )
    for key, value in parameters(release, model).items():
        config.parameters[key].string_value = value
    return config


def refuse_what_ends_the_server(repository: Path, models: Models, version: tuple[int, ...] | None) -> None:
    """Raise ServingError if loading a second classifier would end the whole server.

    version: of a server with NVIDIA's backend; None for the embedded server, where each classifier has a process.
    """
    parameter, file = "INTER_OP_THREAD_COUNT", repository / models.classifier / CONFIG
    ends = version is not None and version < SETS_THREADS_ONCE
    if ends and parameter in read_config(file).parameters:
        raise ServingError(
            f"{file} sets {parameter}, which libtorch accepts once per process: in NVIDIA's backend before 26.03 a "
            "second classifier ends the server (exit code 134); remove it, or release with `make repo` and a restart"
        )


def stage(repository: Path, models: Models, staging: Path, release: Path) -> None:
    """Assemble the candidate's three models from its release, in directories with the candidate's names."""
    names = candidate_names(models, release.name)
    for kind, model in zip(Models().all, models.all):
        config = text_format.MessageToString(configured(repository, release, model, names))
        shutil.rmtree(staging / names[model], ignore_errors=True)
        fill(repository, kind, release, staging / names[model], config)
