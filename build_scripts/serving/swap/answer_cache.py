"""An ensemble with Triton's response cache, for texts that are asked repeatedly.

Triton looks up an answer by the model's name, its version and the inputs. The key lacks two properties of a request:

- The release, which changes neither name nor version.
- The requested outputs. A client that asks for class ids alone would leave an answer without probabilities to the next
  client, which asks for everything.

So the cached ensemble stands behind the classifier's own ensemble, which requests all outputs from it and returns those
that the client asked for. Each cached ensemble gets a new name, under which no other one's answers can be found.
"""

from __future__ import annotations

import time
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.names import CACHED
from build_scripts.releases.store import CONFIG, releases_directory
from build_scripts.serving.swap.model_control import Control
from build_scripts.serving.swap.staging import configured


def load_cached(control: Control, repository: Path, release_id: str, name: str) -> None:
    """Let a classifier's ensemble answer through a cached one, made of the tokenizer and the classifier."""
    release = releases_directory(repository, name) / release_id
    inner = configured(repository, release, name)
    inner.name = f"{CACHED}_{name}_{release_id}_{time.time_ns()}"
    inner.response_cache.enable = True
    directory = Path(control.state.staging) / inner.name
    (directory / "1").mkdir(parents=True)
    (directory / CONFIG).write_text(text_format.MessageToString(inner), encoding="utf-8")
    control.load(inner.name)
    control.load(name, through(configured(repository, release, name), inner.name))


def load_all_cached(http_port: int, repository: Path, releases: dict[str, str]) -> None:
    """Call `load_cached` for every classifier of a server that just started. releases: name -> id of the release."""
    with Control(http_port) as control:
        for name, release_id in releases.items():
            load_cached(control, repository, release_id, name)


def through(config: ModelConfig, name: str) -> ModelConfig:
    """The ensemble with one step: the named model, which has the same inputs and outputs."""
    del config.ensemble_scheduling.step[:]
    step = config.ensemble_scheduling.step.add(model_name=name, model_version=1)
    step.input_map.update({tensor.name: tensor.name for tensor in config.input})
    step.output_map.update({tensor.name: tensor.name for tensor in config.output})
    return config
