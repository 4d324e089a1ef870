"""Load and unload models in the running server, and tell what it runs. How a release goes live is `release`'s job.

Triton accepts these calls only with the key from the supervisor's state file.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CACHED, ENSEMBLE, Models
from build_scripts.releases.models import RELEASE_PARAMETER
from build_scripts.serving.client import connect, is_overload, text_input
from build_scripts.serving.keep.inference import PROBE_ID
from build_scripts.serving.keep.run_state import read_state
from build_scripts.serving.start.tritonserver import CONTROL_HEADER, LOAD_LIMIT_S

# Triton's own prefix for headers that its gRPC service reads.
GRPC_HEADER = f"triton-grpc-protocol-{CONTROL_HEADER}"
# An ordinary text, an empty one, one beyond ASCII and one that is truncated.
PROBE_TEXTS = ["health", "", "中文 \U0001f642", "long " * 600]

# While clients keep the server at its limit, it refuses these calls too: timeout and interval of the retries.
OVERLOAD_LIMIT_S, ASK_AGAIN_S = 60.0, 0.05
# Triton gives up a process that shows no life for a second while it starts. Without enough CPU that is too short, so
# a load that ended with these words is repeated.
STARVED, LOAD_ATTEMPTS = ("is not healthy", "Failed to obtain the health mutex"), 5


@dataclass(frozen=True)
class Running:
    """release: the id of the release that answers. models: the two that a request passes through.

    cached: the ensemble with a response cache between the classifier's own ensemble and these two, "" if none.
    """

    release: str
    models: tuple[str, ...]
    name: str = ENSEMBLE
    cached: str = ""

    @property
    def settled(self) -> bool:
        """Whether requests pass through the models under their own names, not through candidates."""
        own = Models(self.name)
        return self.models == (own.tokenizer, own.classifier)


class Control:
    """Model control of the server on an HTTP port. Use it in a `with` block; every method raises ServingError."""

    def __init__(self, http_port: int):
        self.http_port = http_port
        self.state = read_state(http_port)
        self.client = connect(self.state.grpc_url)
        self.headers = {GRPC_HEADER: self.state.control_key}

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def version_with_nvidias_backend(self) -> tuple[int, ...] | None:
        """Such as (2, 71, 0) for Triton 26.07; None for the embedded server."""
        if self.state.embedded:
            return None
        return tuple(map(int, re.findall(r"\d+", self._call(self.client.get_server_metadata).version)))

    def load(self, model: str, config: ModelConfig | None = None) -> None:
        """Load a model, or load it again; the old one answers until the new one is ready.

        config: replaces the file. Without it, Triton loads a model again only if a file is newer than those it has
        read, and does not say so. A config that differs from the loaded one always makes it load.
        """
        as_json = MessageToJson(config, preserving_proto_field_name=True) if config is not None else None
        for attempt in range(1, LOAD_ATTEMPTS + 1):
            try:
                self._call(self.client.load_model, model, headers=self.headers, config=as_json)
                return
            except ServingError as error:
                if attempt == LOAD_ATTEMPTS or not any(words in str(error) for words in STARVED):
                    raise

    def unload(self, model: str) -> None:
        """Requests in flight are answered first. It is no error if the model is not loaded."""
        self._call(self.client.unload_model, model, headers=self.headers)

    def running(self, name: str = ENSEMBLE) -> Running:
        """What the server says of a classifier. Packages of an earlier layout carry no id; the state file has it."""
        config = self._call(self.client.get_model_config, name).config
        release = config.parameters[RELEASE_PARAMETER].string_value or read_state(self.http_port).releases[name]
        models = tuple(step.model_name for step in config.ensemble_scheduling.step)
        if not models[0].startswith(CACHED):
            return Running(release, models, name)
        inner = self._call(self.client.get_model_config, models[0]).config.ensemble_scheduling
        return Running(release, tuple(step.model_name for step in inner.step), name, models[0])

    def labels_of(self, ensemble: str, count: int) -> list[str]:
        """Ask an ensemble for answers; returns its labels in the order of class ids. count: how many to expect."""
        outputs = [triton.InferRequestedOutput("PROBABILITIES", class_count=count)]
        texts = [text_input(PROBE_TEXTS)]
        result = self._call(self.client.infer, ensemble, texts, request_id=PROBE_ID, outputs=outputs)
        best = [text.decode("utf-8").split(":", 2) for text in result.as_numpy("PROBABILITIES")[0]]
        return [label for _, _, label in sorted(best, key=lambda parts: int(parts[1]))]

    def _call(self, method: Any, *arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + OVERLOAD_LIMIT_S
        while True:
            try:
                return method(*arguments, client_timeout=LOAD_LIMIT_S, **options)
            except InferenceServerException as error:
                if is_overload(error) and time.monotonic() < deadline:
                    time.sleep(ASK_AGAIN_S)
                    continue
                if "UNAVAILABLE" in str(error.status()) and not is_overload(error):
                    raise ServingError(
                        f"the server at {self.state.grpc_url} does not answer ({error.message()}); if `make serve` "
                        "still runs, it starts it again: see `make health`"
                    ) from error
                raise ServingError(error.message()) from error
