"""The part of `triton_python_backend_utils` that our models use: in Triton's stub it exists only inside the server.

`load_module` imports a model.py as the server would, `initialized` sets it up. Nothing is simulated beyond what these
classes hold.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np


class Tensor:
    def __init__(self, name: str, array: np.ndarray):
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "INTERNAL", "INVALID_ARG", "UNAVAILABLE", "CANCELLED"

    def __init__(self, message: str, code: str = INTERNAL):
        self.text, self.kind = message, code

    def message(self) -> str:
        return self.text

    def code(self) -> str:
        return self.kind


class Logger:
    @staticmethod
    def log_error(message: str) -> None:
        print(message, file=sys.stderr)

    @staticmethod
    def log_warn(message: str) -> None:
        print(message, file=sys.stderr)


class MetricFamily:
    """Has one metric; values: all that it was set to."""

    GAUGE = "GAUGE"

    def __init__(self, name: str, description: str, kind: str):
        self.values: list[float] = []

    def Metric(self, labels: dict[str, str]) -> MetricFamily:
        return self

    def set(self, value: float) -> None:
        self.values.append(value)


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None):
        self.outputs, self.error = {tensor.name: tensor.as_numpy() for tensor in output_tensors or []}, error


TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Request:
    """Is its own response sender: what was sent lies in `sent`."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays, self.sent, self.cancelled = arrays, [], False

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int) -> None:
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.sent.append(response)


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.arrays[name]) if name in request.arrays else None


def load_module(directory: Path) -> ModuleType:
    """The module directory/model.py."""
    spec = importlib.util.spec_from_file_location(f"model_in_{directory.name}", directory / "model.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["triton_python_backend_utils"]
        sys.path[:] = path  # the model puts its own directory first, which is right in a process of its own only
    return module


def initialized(module: ModuleType, config: dict, **args: str) -> object:
    """The module's TritonPythonModel with this configuration. args: what else Triton gives, where a model reads it."""
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config), **args})
    return model


def load_model(directory: Path, parameters: dict[str, str]) -> tuple[ModuleType, object]:
    """The module directory/model.py, and its TritonPythonModel, initialized with these parameters."""
    module = load_module(directory)
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    return module, initialized(module, config)
