"""One file for every device: no device and no CPU-specific weight layout may be written into it.

There is not always a GPU to try it on, so tensors that pose as CUDA tensors (`Posing`) run through the file: everything
it computes must stay on their device. They take the branches of a GPU, and the answers are compared too.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from build_scripts.graph.traced import device_constants
from tests.support.checkpoints import KINDS, PACKED_KINDS

pytestmark = pytest.mark.usefixtures("one_thread")

POSED = torch.device("cuda:0")
BOTH_PRECISIONS = ("fp32", "bf16")


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
    """The file as a GPU would hold it: every weight on the device, nothing packed."""
    file = torch.jit.load(str(path)).eval()
    for module in file.modules():
        if hasattr(module, "packed"):
            module.packed = False
        tensors = {name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        for name in tensors | {"weight", "bias", "packed_weight"}:
            if isinstance(tensor := getattr(module, name, None), Tensor):
                module._c.setattr(name, Posing(tensor.detach()))
    return file


def inputs(subject) -> tuple[Tensor, Tensor]:
    """Texts of 3, 20, 7, 6 and 6 tokens: more than one bucket, with and without padding inside."""
    mask = (torch.arange(24) < torch.tensor([3, 20, 7, 6, 6])[:, None]).long()
    ids = torch.randint(5, len(subject.tokenizer), mask.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(mask == 1, ids, subject.tokenizer.pad_token_id), mask


def run_posing(file: torch.jit.ScriptModule, *tensors: Tensor) -> tuple[tuple[Tensor, ...], list[str]]:
    """The outputs, which must be on the posed device, and what a GPU would have refused."""
    with torch.no_grad(), torch.jit.optimized_execution(False), Pose() as pose:
        outputs = file(*map(Posing, tensors))
    assert all(output.device == POSED for output in outputs)
    return tuple(output.held for output in outputs), pose.refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", BOTH_PRECISIONS)
def test_everything_is_computed_where_the_inputs_are(subject, kind, precision):
    own = subject(kind)
    (class_id, probabilities), refused = run_posing(load_posing(own.file(precision)), *inputs(own))
    assert refused == []
    with torch.no_grad():
        expected = own.model(*inputs(own)).logits
    if precision == "fp32":
        assert class_id[:, 0].tolist() == expected.argmax(1).tolist()
    assert (probabilities - expected.softmax(1)).abs().max() < {"fp32": 1e-4, "bf16": 0.05}[precision]


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_refusing_a_row_happens_on_the_device_too(subject, kind):
    own = subject(kind)
    ids, mask = inputs(own)
    ids[1, 3] = -7
    (class_id, _), refused = run_posing(load_posing(own.file()), ids, mask)
    assert refused == []
    assert [row == -1 for row in class_id[:, 0].tolist()] == [False, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", BOTH_PRECISIONS)
def test_no_device_is_written_into_the_file(subject, kind, precision):
    path = subject(kind).file(precision)
    assert devices_in_code(path) == []
    assert device_constants(torch.jit.load(str(path))) == []


def devices_in_code(path: Path) -> list[str]:
    """Lines of the file's serialized code that name a device; `device == "cpu"` asks and names none."""
    with zipfile.ZipFile(path) as archive:
        code = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    assert any("def forward" in source for source in code)
    return re.findall(r".*(?:torch\.device\(|device=\"|\"cuda).*", "\n".join(code))


def columns(input_ids: Tensor) -> Tensor:
    return torch.arange(input_ids.size(1), device="cpu")


class Careless(torch.nn.Module):
    """Always uses the CPU: in a function that it calls, which is a graph of its own."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return input_ids + columns(input_ids), attention_mask


@pytest.mark.parametrize("compile_it", [torch.jit.script, lambda it: torch.jit.trace(it, (torch.ones(2, 24),) * 2)])
def test_a_careless_model_is_found_by_every_check(subject, tmp_path, compile_it):
    file = compile_it(Careless())
    file.save(str(tmp_path / "model.pt"))
    assert devices_in_code(tmp_path / "model.pt")
    assert device_constants(file)
    assert device_constants(torch.jit.load(str(tmp_path / "model.pt")))
    _, refused = run_posing(load_posing(tmp_path / "model.pt"), *inputs(subject("bert")))
    assert refused == ["aten::add.Tensor on a CPU tensor of shape (24,)"]


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_on_a_device_that_is_no_cpu_nothing_is_packed(subject, kind):
    file = torch.jit.load(str(subject(kind).file()), map_location="meta")
    linear = [module for module in file.modules() if hasattr(module, "packed")]
    assert linear
    assert all(not module.packed and module.weight.is_meta and module.bias.is_meta for module in linear)
    assert all(parameter.is_meta for parameter in file.parameters())
    on_cpu = torch.jit.load(str(subject(kind).file()))
    assert all(module.packed for module in on_cpu.modules() if hasattr(module, "packed"))


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_the_file_holds_plain_weights_once(subject, kind):
    """A packed copy would double the size, and would be worth nothing on another CPU. Positions: once a token type."""
    own = subject(kind)
    checkpoint = sum(4 * parameter.numel() for parameter in own.model.parameters())
    if own.checkpoint.token_types == 2:
        checkpoint += 4 * own.model.base_model.embeddings.position_embeddings.weight.numel()
    stored = {precision: tensor_bytes(subject(kind).file(precision)) for precision in BOTH_PRECISIONS}
    assert 0.8 * checkpoint < stored["fp32"] <= checkpoint
    assert 0.5 * stored["fp32"] < stored["bf16"] < 0.6 * stored["fp32"]


def tensor_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist() if re.search(r"/(data|constants)/\d+$", info.filename))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", [*BOTH_PRECISIONS, "fp16"])
def test_the_same_file_answers_on_a_gpu(subject, precision):
    for own in map(subject, KINDS):
        file = torch.jit.load(str(own.file(precision)), map_location="cuda").eval()
        with torch.inference_mode():
            expected = own.model(*inputs(own)).logits.softmax(1)
            class_id, probabilities = file(*(tensor.cuda() for tensor in inputs(own)))
        assert (probabilities.cpu() - expected).abs().max() < (1e-3 if precision == "fp32" else 0.05)
        assert precision != "fp32" or class_id[:, 0].tolist() == expected.argmax(1).tolist()
