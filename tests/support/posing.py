"""Tensors that pose as CUDA tensors: a file runs on them as on a GPU, where there is none."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

POSED = torch.device("cuda:0")


class Posing(torch.Tensor):
    """Says it is on a GPU; holds its numbers on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=POSED
        )

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} outside Pose")


class Pose(TorchDispatchMode):
    """Runs operators on what the posing tensors hold, and notes each that a real GPU would have refused."""

    def __init__(self):
        super().__init__()
        self.refused: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        posing = [tensor for tensor in tensors if isinstance(tensor, Posing)]
        strangers = [tensor for tensor in tensors if not isinstance(tensor, Posing) and tensor.dim() > 0]
        if strangers and function.name() != "aten::copy_":
            self.refused.append(f"{function.name()} on a CPU tensor of shape {tuple(strangers[0].shape)}")
        device = kwargs.get("device") or (POSED if posing else torch.device("cpu"))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        out = function(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
        for tensor in posing:
            if out is tensor.held:  # an in-place operator
                return tensor
        # tolist() copies to the CPU, and so may anything else; to use such a tensor with others is what is refused.
        return out if device.type == "cpu" else tree_map(lambda x: Posing(x) if isinstance(x, Tensor) else x, out)


def unwrap(value):
    return value.held if isinstance(value, Posing) else value


def load_posing(path: Path) -> torch.jit.ScriptModule:
    """The file as a GPU would hold it: every weight on the device, nothing packed, fp16 throughout if stored so."""
    file = torch.jit.load(str(path)).eval()
    for module in file.modules():
        if hasattr(module, "packed"):
            weight, bias = module.plain()
            module.packed, module.fp16_weight = False, None
            module._c.setattr("weight", weight)
            module._c.setattr("bias", bias)
        if getattr(module, "fp16", False):
            module._c.setattr("weight", module.weight.half())
            module._c.setattr("bias", module.bias.half())
        tensors = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        for name in tensors | {"weight", "bias", "packed_weight"}:
            if isinstance(tensor := getattr(module, name, None), Tensor):
                module._c.setattr(name, Posing(tensor.detach()))
    return file


def run_posing(file: torch.jit.ScriptModule, *tensors: Tensor) -> tuple[tuple[Tensor, ...], list[str]]:
    """The outputs, which must be on the posed device, and what a GPU would have refused."""
    with torch.no_grad(), torch.jit.optimized_execution(False), Pose() as pose:
        outputs = file(*map(Posing, tensors))
    assert all(output.device == POSED for output in outputs)
    return tuple(output.held for output in outputs), pose.refused
