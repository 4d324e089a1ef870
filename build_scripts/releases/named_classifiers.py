"""Give a further classifier its three models, beside the default's in one repository.

They are made of the default's: its code, its configs with the names filled in, and its links, which then lead through a
`live` link of the classifier's own. What a build adds is `releases`' job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, Models
from build_scripts.releases import store
from build_scripts.releases.store import CONFIG, COPIED_CONFIG


def add(repository: Path, name: str) -> None:
    """Write the models of a classifier, or bring them to what the default's are now. A config that was edited stays."""
    default, own = Models(), Models(name)
    new_names = dict(zip(default.all, own.all))
    for model, new_name in new_names.items():
        copy_model(repository / model, repository / new_name, lambda link: link.replace(f"/{ENSEMBLE}/", f"/{name}/"))
        config, copied = repository / new_name / CONFIG, repository / new_name / COPIED_CONFIG
        heading = f"# Made of {model}/{CONFIG}: a change there comes here with the next build or start.\n"
        text = heading + text_format.MessageToString(renamed(read_config(repository / model / CONFIG), new_names))
        if config.exists() and config.read_text(encoding="utf-8") != text and not store.same(config, copied):
            print(f"{config} was edited and is kept; remove it to get {model}'s", flush=True)
            continue
        for file in (config, copied):
            store.write_whole(file, text)


def read_config(file: Path) -> ModelConfig:
    try:
        return text_format.Parse(file.read_text(encoding="utf-8"), ModelConfig())
    except text_format.ParseError as error:
        raise ServingError(f"{file} is no model configuration: {error}; mend it") from error


def renamed(config: ModelConfig, names: dict[str, str]) -> ModelConfig:
    """The config with other names for itself and for an ensemble's steps."""
    config.name = names.get(config.name, config.name)
    for step in config.ensemble_scheduling.step:
        step.model_name = names.get(step.model_name, step.model_name)
    return config


def copy_model(source: Path, target: Path, led: Callable[[str], str | Path]) -> None:
    """Copy a model's code and links, not its config. led: where a link of the copy leads, by where its own leads."""
    ignored = shutil.ignore_patterns("live", "releases", "__pycache__", CONFIG, COPIED_CONFIG, ".*")

    def not_copied(directory: str, names: list[str]) -> set[str]:
        links = {name for name in names if Path(directory, name).is_symlink()}
        return ignored(directory, names) | links

    shutil.copytree(source, target, ignore=not_copied, dirs_exist_ok=True, copy_function=store.copy_whole)
    for link in [path for place in (source, *source.glob("[0-9]*")) for path in place.iterdir() if path.is_symlink()]:
        own = target / link.relative_to(source)
        if link.name != "live" and not own.is_symlink():
            own.symlink_to(led(os.readlink(link)))
