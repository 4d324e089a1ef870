"""Read a model's configuration. Any setting that the backend would ignore stops the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

KNOWN_PARAMETERS = {
    "INTRA_OP_THREAD_COUNT",
    "INTER_OP_THREAD_COUNT",
    "INFERENCE_MODE",
    "DISABLE_OPTIMIZED_EXECUTION",
    "release",  # names the release; changes nothing
}
DTYPES = {
    "TYPE_BOOL": torch.bool,
    "TYPE_UINT8": torch.uint8,
    "TYPE_INT8": torch.int8,
    "TYPE_INT16": torch.int16,
    "TYPE_INT32": torch.int32,
    "TYPE_INT64": torch.int64,
    "TYPE_FP16": torch.float16,
    "TYPE_FP32": torch.float32,
    "TYPE_FP64": torch.float64,
}
UNSUPPORTED_SETTINGS = ("sequence_batching", "model_operations")

# Triton's JSON of a config.pbtxt, and of one input or output in it.
Config = Mapping[str, Any]
Spec = Mapping[str, Any]


def read_parameters(config: Config) -> dict[str, str]:
    """The model's parameters. Raises TritonModelException for a setting that is not supported."""
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    unknown = sorted(parameters.keys() - KNOWN_PARAMETERS)
    unknown += [setting for setting in UNSUPPORTED_SETTINGS if config.get(setting)]
    if unknown:
        raise pb_utils.TritonModelException(
            f"model '{config['name']}': the embedded pytorch backend does not support {', '.join(unknown)}; "
            f"remove it, or use NVIDIA's container. Supported parameters: {', '.join(sorted(KNOWN_PARAMETERS))}"
        )
    return parameters


def boolean(parameters: Mapping[str, str], name: str, *, default: bool) -> bool:
    """A parameter as the C++ backend reads it."""
    value = parameters.get(name, str(default)).lower()
    if value not in ("true", "1", "false", "0"):
        raise pb_utils.TritonModelException(f"{name} is {parameters[name]!r}; expected true or false")
    return value in ("true", "1")


def set_threads(parameters: Mapping[str, str]) -> None:
    """Apply the thread counts to this process. Unlike in the C++ backend, each instance has a separate process."""
    setters = {"INTRA_OP_THREAD_COUNT": torch.set_num_threads, "INTER_OP_THREAD_COUNT": torch.set_num_interop_threads}
    for name, set_number in setters.items():
        if name in parameters:
            if not parameters[name].isdecimal() or int(parameters[name]) == 0:
                raise pb_utils.TritonModelException(f"{name} is {parameters[name]!r}; expected a number from 1 on")
            set_number(int(parameters[name]))


def positional(specs: Sequence[Spec], prefix: str) -> list[Spec]:
    """Inputs or outputs in the order of their numbers: INPUT__0, INPUT__1 …"""
    by_name = {spec["name"]: spec for spec in specs}
    names = [f"{prefix}__{index}" for index in range(len(specs))]
    if by_name.keys() != set(names):
        raise pb_utils.TritonModelException(f"expected tensors named {', '.join(names)}, found {', '.join(by_name)}")
    for spec in specs:
        if spec["data_type"] not in DTYPES:
            raise pb_utils.TritonModelException(f"{spec['name']}: {spec['data_type']} is not supported")
    return [by_name[name] for name in names]


def is_classifier(outputs: Sequence[Spec]) -> bool:
    """Whether the outputs are class ids (rows, 1) int64 and probabilities (rows, labels) fp32."""
    found = [(spec["data_type"], len(spec["dims"])) for spec in outputs]
    return found == [("TYPE_INT64", 1), ("TYPE_FP32", 1)] and [int(size) for size in outputs[0]["dims"]] == [1]


def device_of(kind: str, device_id: str) -> torch.device:
    """The torch device of an instance. The model file holds no device, so this alone decides."""
    if kind == "GPU":
        return torch.device("cuda", int(device_id))
    if kind == "CPU":
        return torch.device("cpu")
    raise pb_utils.TritonModelException(f"instance kind {kind} is not supported; use KIND_CPU or KIND_GPU")
