"""Give a further classifier its three configs, beside the default's in one repository.

They are the default's with the names filled in. The code is the default's own; see `models`.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import Models
from build_scripts.releases.files import same, write_whole
from build_scripts.releases.sources import COPIED_CONFIG
from build_scripts.releases.store import CONFIG


def add(repository: Path, name: str) -> None:
    """Write a classifier's configs, or bring them to what the default's are now. A config that was edited stays."""
    default, own = Models(), Models(name)
    new_names = dict(zip(default.all, own.all))
    for model, new_name in new_names.items():
        config, copied = repository / new_name / CONFIG, repository / new_name / COPIED_CONFIG
        heading = f"# Made of {model}/{CONFIG}: a change there comes here with the next build or start.\n"
        text = heading + text_format.MessageToString(renamed(read_config(repository / model / CONFIG), new_names))
        if config.exists() and config.read_text(encoding="utf-8") != text and not same(config, copied):
            print(f"{config} was edited and is kept; remove it to get {model}'s", flush=True)
            continue
        config.parent.mkdir(exist_ok=True)
        for file in (config, copied):
            write_whole(file, text)


def read_config(file: Path) -> ModelConfig:
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    except text_format.ParseError as error:
        raise ServingError(f"{file} is not a model configuration: {error}; correct it") from error


def renamed(config: ModelConfig, names: dict[str, str]) -> ModelConfig:
    """The config with other names for itself and for an ensemble's steps."""
    config.name = names.get(config.name, config.name)
    for step in config.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    return config
