"""The fallback for models that are not BERT-shaped: Hugging Face's own forward, traced.

It computes padding up to the longest text of each batch, or runs one text at a time (`Way`), which costs speed and
nothing else. Traces bake the example's device into constants; they are replaced, so that one file serves every device.
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
class Way:
    """How a traced forward takes a batch. Some models answer rightly only without neighbours or at one width.

    alone: one text after the other. full_width: always max_length columns, for forwards whose trace is of one width.
    """

    alone: bool = False
    full_width: bool = False

    def __str__(self) -> str:
        texts = "one text at a time" if self.alone else "a batch at a time"
        width = "max_length" if self.full_width else "its own length" if self.alone else "the longest text of a batch"
        return f"traced ({texts}, padded to {width})" if self != Way() else f"traced (padded to {width})"


PADDED = Way()
# The fastest first.
WAYS = (PADDED, Way(alone=True), Way(full_width=True), Way(alone=True, full_width=True))


class _Logits(nn.Module):
    """What is traced of a Hugging Face model: three tensors in, logits out. Many models take no token types."""

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
    way: Way,
    pad_id: int,
    token_types: int = 1,
) -> TracedLogits:
    """Trace the forward of a Hugging Face sequence classifier, which stays as it is.

    example: input_ids and attention_mask, (2, width) int64, of two texts of different lengths: with equal ones the
    trace would take the mask for a constant. The longer one comes second. For a full width they are that wide.
    Raises ServingError if the model cannot be traced.
    """
    model = copy.deepcopy(model).to(dtype)
    input_ids, attention_mask = example
    minimum = input_ids.size(1) if way.full_width else 1 if way.alone else 2
    if way.alone:
        input_ids, attention_mask = input_ids[1:], attention_mask[1:]
    inputs = (input_ids, attention_mask, torch.zeros_like(input_ids))
    try:
        traced = torch.jit.trace(_Logits(model, token_types).eval(), inputs, check_trace=False)
    except Exception as error:  # tracing runs model code of any kind
        raise ServingError(
            f"{model.config.model_type} cannot be traced to TorchScript ({type(error).__name__}: {error}); "
            "BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE and DistilBERT can be served"
        ) from error
    forget_device(traced)
    required_id = required_token(model, input_ids[-1:], attention_mask[-1:])
    return TracedLogits(
        traced, token_types=token_types, minimum=minimum, alone=way.alone, pad_id=pad_id, required_id=required_id
    )


def required_token(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> int:
    """The id that every text must hold for the model to answer, or -1: BART and its kin pool at the end of the text.

    input_ids, attention_mask: (1, width) int64, a text that is answered.
    """
    eos = getattr(model.config, "eos_token_id", None)
    if not isinstance(eos, int) or not bool((input_ids == eos).any()):
        return -1
    without = input_ids.masked_fill(input_ids == eos, eos - 1 if eos > 0 else eos + 1)
    try:
        with torch.inference_mode():
            model(input_ids=without, attention_mask=attention_mask)
    except Exception:  # what it raises is the model's own affair; that it raises is the answer
        return eos
    return -1


def forget_device(traced: torch.jit.ScriptModule) -> None:
    """Replace every device constant of a trace by the device of a tensor that the same graph is given.

    Submodules keep graphs of their own; one without a tensor among its inputs is left alone, and the check of the
    written file (`device_constants`) then refuses it.
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
    """The device constants anywhere in a TorchScript model, as text; a file for every device has none."""
    # Inlined, because a scripted function that a method calls has a graph of its own.
    inlined = [method.inlined_graph for method in methods(model)]
    nodes = [node for graph in inlined for node in graph.findAllNodes("prim::Constant")]
    return [str(node).strip() for node in nodes if is_device(node)]
