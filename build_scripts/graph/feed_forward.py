"""The parts of a layer beside attention: feed-forward, and DeBERTa-v2's convolution. Part of the graph."""

from typing import Final

import torch
from torch import Tensor, nn

from build_scripts.graph.activations import FUSED, activate
from build_scripts.graph.norm import Norm
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.graph.packing import add_rows
from build_scripts.graph.parts import Convolution, EncoderLayer, EncoderParts


class FeedForward(nn.Module):
    """The rest of a layer after attention, with both residuals: (rows, hidden) -> (rows, hidden)."""

    activation: Final[str]
    gated: Final[bool]
    norm_first: Final[bool]

    def __init__(self, layer: EncoderLayer, parts: EncoderParts, dtype: torch.dtype):
        super().__init__()
        self.norm_first = parts.norm_first
        self.gated = layer.gate is not None
        self.attention_output = PackedLinear.of(layer.attention_output, dtype)
        self.attention_norm = Norm(None if parts.norm_first else layer.attention_norm, dtype)
        # oneDNN fuses some activations into the product. The others, and those of a gate, run after it.
        fused = parts.activation in FUSED and not self.gated
        self.activation = "none" if fused else parts.activation
        intermediate = layer.intermediate if layer.gate is None else joined(layer.gate, layer.intermediate)
        self.intermediate = PackedLinear.of(intermediate, dtype, parts.activation if fused else "none")
        self.output = PackedLinear.of(layer.output, dtype)
        self.output_norm = Norm(layer.output_norm, dtype)

    def forward(self, attended: Tensor, x: Tensor) -> Tensor:
        if self.norm_first:
            x = self.attention_output.add(attended, x)
            return self.output.add(self.inner(self.output_norm(x)), x)
        x = self.attention_norm(self.attention_output.add(attended, x))
        return self.output_norm(self.output.add(self.inner(x), x))

    def inner(self, x: Tensor) -> Tensor:
        x = self.intermediate(x)
        if self.gated:
            gate, x = x.chunk(2, -1)
            return activate(gate, self.activation) * x
        return activate(x, self.activation)


class PackedConvolution(nn.Module):
    """A convolution over three neighbouring tokens of a text, see Convolution."""

    activation: Final[str]

    def __init__(self, parts: Convolution, dtype: torch.dtype):
        super().__init__()
        self.activation = parts.activation
        weight = torch.cat(parts.weight.unbind(2), 1)  # (out, in, 3) -> (out, 3 * in)
        self.linear = PackedLinear(weight, parts.bias, dtype=dtype)
        self.norm = Norm(parts.norm, dtype)

    def forward(self, x: Tensor, layered: Tensor, lengths: Tensor, hidden: Tensor) -> Tensor:
        if hidden.size(0) > 0:
            x = x.masked_fill(add_rows(hidden, x.size(0) - hidden.size(0)).unsqueeze(1), 0.0)
        ends = lengths.cumsum(0)
        before, after = x.roll(1, 0), x.roll(-1, 0)
        before.index_fill_(0, ends - lengths, 0.0)
        after.index_fill_(0, ends - 1, 0.0)
        return self.norm(layered + activate(self.linear(torch.cat([before, x, after], 1)), self.activation))


def joined(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Both layers as one product; neither or both have a bias."""
    weight = torch.cat([first.weight, second.weight]).detach()
    linear = nn.Linear(weight.size(1), weight.size(0), bias=first.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, False)
    if first.bias is not None:
        linear.bias = nn.Parameter(torch.cat([first.bias, second.bias]).detach(), False)
    return linear
