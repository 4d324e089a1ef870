"""Layers that store plain weights and, when they are loaded on a CPU, repack them for the kernels that it has.

Two kernels want a layout of their own. oneDNN's makes bf16 up to 1.8 times and fp32 up to 2 times as fast as `F.linear`
on AMD and Intel servers. FBGEMM multiplies fp32 activations by fp16 weights: half the memory to read, which is what
short texts wait for on CPUs without bf16. A packed copy depends on the CPU, so it never goes into the file, and in
memory it takes the plain one's place. On any other device a layer is plain, and fp16 means fp16 throughout.

An operator that torch does not know stops the load of a file, even in a branch that is never taken. FBGEMM's are known
to every build of torch and fail when they are called in one without FBGEMM, such as most for ARM: `runs_fbgemm` asks
first. oneDNN's are known only to builds with oneDNN. A torch that lacks one of the two writes files without it.
"""

from typing import Final, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.packing import round_up


def runs_fbgemm() -> bool:
    """Whether the CPU is one that FBGEMM is built for: x86 with AVX2. torch says "DEFAULT" or an ARM name elsewhere."""
    capability = torch.ops.aten._get_cpu_capability()
    return capability == "AVX2" or capability == "AVX512"


class PackedLinear(nn.Module):
    """y = activation(x @ weight.T + bias), optionally plus a residual.

    weight: (out_features, in_features), bias: (out_features,), x: (rows, in_features). fp32 and bf16 are the dtype of
    all of them. With fp16 weights, x and y are fp32 on a CPU and fp16 elsewhere; the file holds the bias in fp32.
    activation: "none", "relu" or "gelu" (the exact one, by erf).
    """

    activation: Final[str]
    fp16: Final[bool]
    onednn: Final[bool]
    fbgemm: Final[bool]
    packed: bool
    # TorchScript wants this form, and knows the class.
    fp16_weight: Optional[torch.classes.quantized.LinearPackedParamsBase]  # type: ignore[name-defined]  # noqa: UP045

    def __init__(self, weight: Tensor, bias: Tensor, *, dtype: torch.dtype, activation: str = "none"):
        super().__init__()
        self.activation = activation
        self.fp16 = dtype == torch.float16
        # Where a constant is False, the branches behind it are not compiled at all.
        self.onednn, self.fbgemm = self.kernels()
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = bias.detach().to(torch.float32 if self.fp16 else dtype).contiguous()
        self.packed_weight = torch.empty(0)
        self.packed = False
        self.fp16_weight = None
        self.pack()

    @staticmethod
    def of(linear: nn.Linear, dtype: torch.dtype, activation: str = "none") -> "PackedLinear":
        """The same layer as a plain one."""
        return PackedLinear(linear.weight, linear.bias, dtype=dtype, activation=activation)

    @staticmethod
    def kernels() -> tuple[bool, bool]:
        """Whether the torch that writes the file has oneDNN and FBGEMM."""
        return hasattr(torch.ops.mkldnn, "_linear_pointwise"), "fbgemm" in torch.backends.quantized.supported_engines

    def pack(self) -> None:
        """Bring the weights into the layout of the device's fastest kernel, and drop the plain ones if there is one."""
        if self.weight.device.type != "cpu":
            if self.fp16:
                self.bias = self.bias.half()
            return
        if self.fp16:
            self.weight = self.weight.float()
            if self.fbgemm and runs_fbgemm():
                self.fp16_weight = torch.ops.quantized.linear_prepack_fp16(self.weight, self.bias)
                self.weight = torch.empty(0)
                return
        if self.onednn:
            self.packed = self.weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
            if self.packed:
                # 64 is the number of rows for which oneDNN picks the blocked layout.
                self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 64)
                self.weight = torch.empty(0)

    @torch.jit.export
    def plain(self) -> tuple[Tensor, Tensor]:
        """weight and bias as the file holds them, whatever they are packed into."""
        weight, fp16_weight = self.weight, self.fp16_weight
        if fp16_weight is not None:
            weight, _ = torch.ops.quantized.linear_unpack_fp16(fp16_weight)
        elif self.packed:
            weight = self.packed_weight.to_dense()
        return (weight.half(), self.bias.float()) if self.fp16 else (weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        fp16_weight = self.fp16_weight
        if self.onednn and self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, self.activation, [], "none")
        if fp16_weight is not None:
            if self.activation == "relu":
                return torch.ops.quantized.linear_relu_dynamic_fp16(x, fp16_weight)
            y = torch.ops.quantized.linear_dynamic_fp16(x, fp16_weight)
        else:
            y = F.linear(x, self.weight, self.bias)
        if self.activation == "gelu":
            return torch.ops.aten.gelu_(y)
        if self.activation == "relu":
            return F.relu(y)
        return y

    @torch.jit.export
    def spare_rows(self, rows: int) -> int:
        """How many zeros to add to so many rows, see round_up. FBGEMM prepares nothing for a number of rows."""
        return 0 if self.fp16_weight is not None else round_up(rows) - rows

    @torch.jit.export
    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x @ weight.T + bias + residual, in one kernel if there is one; used by layers without an activation."""
        fp16_weight = self.fp16_weight
        if self.onednn and self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, residual, self.packed_weight, self.bias, "add")
        if fp16_weight is not None:
            return torch.ops.quantized.linear_dynamic_fp16(x, fp16_weight).add_(residual)
        return F.linear(x, self.weight, self.bias) + residual

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, bool]:
        weight, bias = self.plain()
        return weight, bias, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, bool]) -> None:
        self.weight, self.bias, self.training = state
        self.packed_weight = torch.empty(0)
        self.packed = False
        self.fp16_weight = None
        self.pack()


class Norm(nn.Module):
    """LayerNorm over the last dimension, in the dtype of the activations: with fp16 weights fp32 on a CPU, else fp16.

    weight, bias: (hidden,), which the file holds in fp32 with fp16 weights.
    """

    fp16: Final[bool]
    eps: Final[float]

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype):
        super().__init__()
        self.fp16 = dtype == torch.float16
        self.eps = norm.eps
        self.weight = norm.weight.detach().to(torch.float32 if self.fp16 else dtype)
        self.bias = norm.bias.detach().to(self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
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
