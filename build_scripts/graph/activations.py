"""Activations of the packed graph, by their names in Hugging Face's configs. Part of the graph.

oneDNN fuses gelu and relu into the matrix product. The others run after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Aliases. gelu_new and its aliases are the tanh approximation of gelu.
SAME_AS = {
    "gelu_python": "gelu",
    "gelu_fast": "gelu_new",
    "gelu_accurate": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "swish": "silu",
    "linear": "none",
}
FUSED = {"none", "gelu", "relu"}
KNOWN = FUSED | {"gelu_new", "silu", "quick_gelu", "mish", "tanh", "sigmoid", "leaky_relu", "relu2", "relu6"}


def plain_name(name: str) -> str:
    """The name that `activate` uses for an activation; "" if the activation is unknown."""
    name = SAME_AS.get(name, name)
    return name if name in KNOWN else ""


def activate(x: Tensor, name: str) -> Tensor:
    """Apply an activation to a tensor of any shape. name: one of KNOWN; "none" returns x unchanged."""
    if name == "gelu":
        return F.gelu(x)
    if name == "gelu_new":
        return F.gelu(x, approximate="tanh")
    if name == "relu":
        return F.relu(x)
    if name == "silu":
        return F.silu(x)
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "mish":
        return F.mish(x)
    if name == "tanh":
        return torch.tanh(x)
    if name == "sigmoid":
        return torch.sigmoid(x)
    if name == "leaky_relu":
        return F.leaky_relu(x)
    if name == "relu2":
        return F.relu(x).square()
    if name == "relu6":
        return F.relu6(x)
    return x
