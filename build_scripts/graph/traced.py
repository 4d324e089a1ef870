"""The fallback for models that are not BERT-shaped: Hugging Face's own forward, traced.

It computes padding up to the longest text of each batch, which costs speed and nothing else. Traces bake the example's
device into constants; they are replaced, so that one file serves every device.
"""

import copy
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from build_scripts.settings import ServingError


class TracedLogits(nn.Module):
    """(batch, width) ids and mask -> logits, on the columns up to the longest text of the batch."""

    minimum: Final[int]

    def __init__(self, traced: nn.Module, minimum: int):
        super().__init__()
        self.traced = traced
        self.minimum = minimum

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        attention_mask = (attention_mask != 0).to(torch.int64)
        attention_mask[:, 0] = 1
        longest = int(attention_mask.amax(0).nonzero().amax()) + 1
        width = min(max(longest, self.minimum), input_ids.size(1))
        return self.traced(input_ids[:, :width], attention_mask[:, :width])


class _Logits(nn.Module):
    """What is traced of a Hugging Face model: two tensors in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).logits


def traced_logits(model: PreTrainedModel, example: tuple[Tensor, Tensor], dtype: torch.dtype) -> TracedLogits:
    """Trace the forward of a Hugging Face sequence classifier, which stays as it is.

    example: input_ids and attention_mask, (2, width) int64, of two texts of different lengths: with equal ones the
    trace would take the mask for a constant. Raises ServingError if the model cannot be traced.
    """
    model = copy.deepcopy(model).to(dtype)
    try:
        traced = torch.jit.trace(_Logits(model).eval(), example, check_trace=False)
    except Exception as error:  # tracing runs model code of any kind
        raise ServingError(
            f"{model.config.model_type} cannot be traced to TorchScript ({type(error).__name__}: {error}); "
            "BERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, ERNIE and DistilBERT can be served"
        ) from error
    forget_device(traced)
    return TracedLogits(traced, minimum=2)


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
