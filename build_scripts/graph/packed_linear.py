"""Linear layers that store plain weights and repack them for the CPU's fastest kernel when the file is loaded.

oneDNN's weight layout makes bf16 up to 1.8 times and fp32 up to 2 times as fast as `F.linear` on AMD and Intel servers.
FBGEMM multiplies fp32 activations by fp16 weights. It halves the memory traffic, which bounds short texts on CPUs
without bf16. The packed copy depends on the CPU: it replaces the plain weights in memory and is never saved. On other
devices a layer stays plain, and fp16 means fp16 weights and activations.

TorchScript rejects a file with an unknown operator, even in a dead branch. Every torch build knows FBGEMM's operators,
but they fail without FBGEMM (most ARM builds), so `runs_fbgemm` checks first. Only builds with oneDNN know oneDNN's
operators. A torch without one of these libraries writes files without its operators.
"""

from typing import Final, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from build_scripts.graph.packing import round_up


def runs_fbgemm() -> bool:
    """Whether FBGEMM supports this CPU: x86 with AVX2. torch reports "DEFAULT" or an ARM name elsewhere."""
    capability = torch.ops.aten._get_cpu_capability()
    return capability == "AVX2" or capability == "AVX512"


class PackedLinear(nn.Module):
    """y = activation(x @ weight.T + bias), optionally plus a residual.

    weight: (out_features, in_features), bias: (out_features,), x: (rows, in_features). In fp32 and bf16 all have that
    dtype. With fp16 weights, x and y are fp32 on a CPU and fp16 elsewhere; the file holds the bias in fp32.
    activation: "none", "relu" or "gelu" (the exact one, by erf).
    """

    activation: Final[str]
    fp16: Final[bool]
    onednn: Final[bool]
    fbgemm: Final[bool]
    packed: bool
    # TorchScript needs this annotation, and knows the class.
    fp16_weight: Optional[torch.classes.quantized.LinearPackedParamsBase]  # type: ignore[name-defined]  # noqa: UP045

    def __init__(self, weight: Tensor, bias: Tensor, *, dtype: torch.dtype, activation: str = "none"):
        super().__init__()
        self.activation = activation
        self.fp16 = dtype == torch.float16
        # TorchScript does not compile a branch behind a constant False.
        self.onednn, self.fbgemm = self.kernels()
        self.weight = weight.detach().to(dtype).contiguous()
        self.bias = bias.detach().to(torch.float32 if self.fp16 else dtype).contiguous()
        self.packed_weight = torch.empty(0)
        self.packed = False
        self.fp16_weight = None
        self.pack()

    @staticmethod
    def of(linear: nn.Linear, dtype: torch.dtype, activation: str = "none") -> "PackedLinear":
        """Convert a plain layer. A missing bias becomes zeros, which cost nothing measurable."""
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias
        return PackedLinear(linear.weight, bias, dtype=dtype, activation=activation)

    @staticmethod
    def kernels() -> tuple[bool, bool]:
        """Whether the torch that writes the file has oneDNN, and whether it has FBGEMM."""
        return hasattr(torch.ops.mkldnn, "_linear_pointwise"), "fbgemm" in torch.backends.quantized.supported_engines

    def pack(self) -> None:
        """Convert the weights to the layout of the fastest kernel, which replaces the plain weights."""
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
                # 64: a number of rows for which oneDNN chooses the blocked layout.
                self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 64)
                self.weight = torch.empty(0)

    @torch.jit.export
    def plain(self) -> tuple[Tensor, Tensor]:
        """weight and bias as the file stores them."""
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
        """Number of zero rows to append, see round_up. FBGEMM caches nothing per row count and needs none."""
        return 0 if self.fp16_weight is not None else round_up(rows) - rows

    @torch.jit.export
    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x @ weight.T + bias + residual, in one oneDNN kernel where possible. For layers without an activation."""
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
