"""Trace Hugging Face's own forward, for checkpoints that have no packed graph.

Pads to the longest text of the batch, or runs texts one by one (`BatchMode`). Slower, same answers. A trace bakes the
example's device into constants; they are replaced, so that one file serves every device.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from build_scripts.core.errors import ServingError
from build_scripts.graph.traced_logits import TracedLogits


@dataclass(frozen=True)
class BatchMode:
    """Batching mode of a traced forward. Some models answer correctly only without neighbours or at one width.

    one_by_one: one text after the other. full_width: always max_length columns, for traces that hold for one width.
    """

    one_by_one: bool = False
    full_width: bool = False

    def __str__(self) -> str:
        width = "max_length" if self.full_width else "its own length" if self.one_by_one else "the longest text"
        return f"{'one text' if self.one_by_one else 'a batch'} at a time, padded to {width}"


# The fastest first.
BATCH_MODES = (
    BatchMode(),
    BatchMode(one_by_one=True),
    BatchMode(full_width=True),
    BatchMode(one_by_one=True, full_width=True),
)


class _Logits(nn.Module):
    """The traced part of a Hugging Face model: three tensors in, logits out. Many models take no token types."""

    def __init__(self, model: nn.Module, token_types: int):
        super().__init__()
        self.model = model
        self.token_types = token_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor) -> Tensor:
        types = {"token_type_ids": token_types} if self.token_types > 1 else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types).logits


def traced_logits(
    model: PreTrainedModel,
    example: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    mode: BatchMode,
    pad_id: int,
    token_types: int = 1,
) -> TracedLogits:
    """Trace the forward of a copy of a Hugging Face sequence classifier.

    example: input_ids and attention_mask, (2, width) int64, of two texts; width is max_length in full-width mode. The
    second text must be longer: with equal lengths the trace would record the mask as a constant.
    Raises ServingError if the model cannot be traced.
    """
    model = copy.deepcopy(model).to(dtype)
    input_ids, attention_mask = example
    minimum = input_ids.size(1) if mode.full_width else 1 if mode.one_by_one else 2
    if mode.one_by_one:
        input_ids, attention_mask = input_ids[1:], attention_mask[1:]
    inputs = (input_ids, attention_mask, torch.zeros_like(input_ids))
    try:
        traced = torch.jit.trace(_Logits(model, token_types).eval(), inputs, check_trace=False)
    except Exception as error:  # tracing runs the model's own code
        raise ServingError(
            f"{model.config.model_type} cannot be traced to TorchScript ({type(error).__name__}: {error}); expected an "
            "architecture that docs/your-checkpoint.md lists"
        ) from error
    forget_device(traced)
    required_id = required_token(model, input_ids[-1:], attention_mask[-1:])
    return TracedLogits(
        traced, token_types=token_types, minimum=minimum, alone=mode.one_by_one, pad_id=pad_id, required_id=required_id
    )


def required_token(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> int:
    """The id that every text must contain for the model to answer, or -1. BART and its relatives pool at such a token.

    input_ids, attention_mask: (1, width) int64 of a text that the model answers.
    """
    eos = getattr(model.config, "eos_token_id", None)
    if not isinstance(eos, int) or not bool((input_ids == eos).any()):
        return -1
    without = input_ids.masked_fill(input_ids == eos, eos - 1 if eos > 0 else eos + 1)
    try:
        with torch.inference_mode():
            model(input_ids=without, attention_mask=attention_mask)
    except Exception:  # any error means that the model needs the token
        return eos
    return -1


def forget_device(traced: torch.jit.ScriptModule) -> None:
    """Replace every device constant of a trace by the device of one of the graph's input tensors.

    A submodule's graph without an input tensor stays as it is; `device_constants` then finds it, and the build
    refuses the file.
    """
    for graph in graphs(traced):
        tensors = [value for value in graph.inputs() if value.type().kind() == "TensorType"]
        constants = [node for node in graph.findAllNodes("prim::Constant") if is_device(node)]
        if tensors and constants:
            device = graph.create("prim::device", tensors[:1])
            device.output().setType(constants[0].output().type())
            graph.prependNode(device)
            for constant in constants:
                constant.output().replaceAllUsesWith(device.output())
                constant.destroy()


# torch's stubs know only part of torch._C, hence Any: a torch._C.Graph, a torch._C.ScriptMethod, a torch._C.Node.


def graphs(model: torch.jit.ScriptModule) -> list[Any]:
    """The graph of every method of every submodule; changing one changes the model."""
    return [method.graph for method in methods(model)]


def methods(model: torch.jit.ScriptModule) -> list[Any]:
    compiled: list[Any] = [module._c for module in model.modules()]
    return [one._get_method(name) for one in compiled for name in one._method_names()]


def is_device(node: Any) -> bool:
    return node.output().type().kind() == "DeviceObjType"


def device_constants(model: torch.jit.ScriptModule) -> list[str]:
    """The device constants in a TorchScript model, as text; a portable file has none."""
    # Inlined: a scripted function that a method calls has its own graph.
    inlined = [method.inlined_graph for method in methods(model)]
    nodes = [node for graph in inlined for node in graph.findAllNodes("prim::Constant")]
    return [str(node).strip() for node in nodes if is_device(node)]
