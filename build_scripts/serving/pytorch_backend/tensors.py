"""Tensors between Triton, numpy and torch, and the response to a request with bad values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:  # the path of these modules as mypy sees it
    from build_scripts.serving.pytorch_backend import model_config
else:
    import model_config


def input_array(request: pb_utils.InferenceRequest, name: str) -> np.ndarray:
    """A view of the request's tensor. Triton gives Python models main memory only."""
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate the requests' rows; a single request is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def refusal(message: str) -> pb_utils.InferenceResponse:
    """HTTP 400, gRPC INVALID_ARGUMENT."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))


def to_numpy(spec: model_config.Spec, output: torch.Tensor) -> np.ndarray:
    """Raises TypeError if the output's type differs from the configuration's."""
    if output.dtype != model_config.DTYPES[spec["data_type"]]:
        raise TypeError(f"{spec['name']} is {output.dtype}, the configuration says {spec['data_type']}")
    return output.cpu().contiguous().numpy()
