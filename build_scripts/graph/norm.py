"""LayerNorm and RMSNorm of the packed graph. Part of the graph."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.parts import NormParts


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last dimension, in the dtype of the activations. Without parts returns its input.

    weight, bias: (width,). With fp16 weights the file holds them in fp32; they become fp16 on devices other than CPUs.
    """

    fp16: Final[bool]
    used: Final[bool]
    rms: Final[bool]
    eps: Final[float]

    def __init__(self, parts: NormParts | None, dtype: torch.dtype):
        super().__init__()
        self.used = parts is not None
        parts = parts or NormParts(torch.ones(1), torch.zeros(1), 0.0)
        self.fp16 = dtype == torch.float16
        self.rms = parts.rms
        self.eps = parts.eps
        self.weight = parts.weight.detach().to(torch.float32 if self.fp16 else dtype)
        self.bias = parts.bias.detach().to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if not self.used:
            return x
        if self.rms:
            exact = x.float()
            exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
            return exact.to(x.dtype) * self.weight
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        if self.fp16:
            return self.weight.float(), self.bias.float(), self.training
        return self.weight, self.bias, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        self.weight, self.bias, self.training = state
        if self.fp16 and self.weight.device.type != "cpu":
            self.weight, self.bias = self.weight.half(), self.bias.half()
