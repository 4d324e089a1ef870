"""Stand-ins for tritonserver's HTTP frontend and its processes, and our pytorch backend as the server would load it.

Each stand-in ends with its test."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
from collections.abc import Callable, Iterator

import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from build_scripts.core.names import CLASSIFIER
from build_scripts.core.paths import PROJECT, SOURCE_REPOSITORY
from build_scripts.serving.start.tritonserver import TritonProcess
from tests.support import fake_triton
from tests.support.fake_frontend import Frontend

# Includes unset fields, as Triton's own JSON does. The first name is protobuf's from version 5 on.
(UNSET_FIELDS,) = {"always_print_fields_with_no_presence", "including_default_value_fields"} & set(
    inspect.signature(MessageToDict).parameters
)


@pytest.fixture
def frontend() -> Iterator[Callable[..., Frontend]]:
    """frontend(*statuses, **of_models): listens until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*statuses: int | None, **of_models: int | None) -> Frontend:
            return stack.enter_context(Frontend(*statuses, **of_models))

        yield start


@pytest.fixture
def process() -> Iterator[Callable[..., TritonProcess]]:
    """process(*command): runs in place of tritonserver until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*command: str) -> TritonProcess:
            started = subprocess.Popen(command, start_new_session=True)
            server = TritonProcess(started, f"text_classifier_stand_in_{started.pid}_")
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def load(subject, tmp_path_factory) -> Callable:
    """load((old, new)): the backend with a tiny BERT; replaces `old` by `new` in its config.pbtxt first."""
    module = fake_triton.load_module(PROJECT / "build_scripts" / "serving" / "pytorch_backend")
    module.lower_priority = lambda: None  # this process runs the tests too
    directory = tmp_path_factory.mktemp("classifier")
    (directory / "1").mkdir()
    (directory / "1" / "model.pt").symlink_to(subject("bert").file())
    committed = (SOURCE_REPOSITORY / CLASSIFIER / "config.pbtxt").read_text(encoding="utf-8")

    def make(edit: tuple[str, str] = ("", ""), kind: str = "CPU"):
        assert edit[0] in committed
        config = text_format.Parse(committed.replace(*edit) if edit[0] else committed, ModelConfig())
        as_json = MessageToDict(config, preserving_proto_field_name=True, **{UNSET_FIELDS: True})
        where = {"model_repository": str(directory), "model_version": "1", "model_instance_name": "classifier_0_0"}
        return fake_triton.initialized(module, as_json, **where, model_instance_kind=kind, model_instance_device_id="0")

    return make
