"""Stand-in for `triton_python_backend_utils`, which exists only inside Triton's stub. Holds what our models use.

`load_module` imports a model.py as the server would; `initialized` initializes its model. Nothing else is simulated.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Container
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

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
    """values: every value its metrics received. told: the same by the metrics' labels, as sorted pairs."""

    COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"
    families: ClassVar[dict[str, MetricFamily]] = {}

    def __init__(self, name: str, description: str, kind: str):
        self.values: list[float] = []
        self.told: dict[tuple[tuple[str, str], ...], list[float]] = {}
        MetricFamily.families[name] = self

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> SimpleNamespace:
        told = self.told.setdefault(tuple(sorted(labels.items())), [])

        def tell(value: float) -> None:
            told.append(value)
            self.values.append(value)

        return SimpleNamespace(family=self, observe=tell, increment=tell, set=tell)


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None):
        self.outputs, self.error = {tensor.name: tensor.as_numpy() for tensor in output_tensors or []}, error


TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class AllOutputs:
    def __contains__(self, name: str) -> bool:
        return True


class Request:
    """Also its own response sender; `sent` holds the responses. requested: names of outputs."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays, self.sent, self.cancelled, self.id = arrays, [], False, ""
        self.requested: Container[str] = AllOutputs()

    def requested_output_names(self) -> Container[str]:
        return self.requested

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> Request:
        return self

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: InferenceResponse, flags: int) -> None:
        """Triton's sender drops unrequested outputs without Python's lock, which may end the process."""
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        assert all(name in self.requested for name in response.outputs)
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
        sys.path[:] = path  # the model puts its directory first; only a separate process may keep that
    return module


def initialized(module: ModuleType, config: dict, **args: str) -> object:
    """The module's TritonPythonModel with this configuration. args: further arguments that Triton gives a model."""
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config), "model_name": "tokenizer", **args})
    return model


def load_model(directory: Path, parameters: dict[str, str]) -> tuple[ModuleType, object]:
    """The module directory/model.py, and its TritonPythonModel, initialized with these parameters."""
    module = load_module(directory)
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    return module, initialized(module, config)
