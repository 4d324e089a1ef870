"""One file for every device: no device and no CPU-specific weight layout may be written into it.

There is not always a GPU to try it on, so tensors that pose as CUDA tensors (`Posing`) run through the file: everything
it computes must stay on their device. They take the branches of a GPU, and the answers are compared too.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from build_scripts.convert.export import export, graphs
from build_scripts.convert.families import encoder_parts
from build_scripts.convert.traced import device_constants
from build_scripts.graph.packed_linear import PackedLinear
from tests.support.checkpoints import KINDS, PACKED_KINDS

pytestmark = pytest.mark.usefixtures("one_thread")

POSED = torch.device("cuda:0")
PRECISIONS = ("fp32", "bf16", "fp16")
EVERY_PRECISION = ("fp32", pytest.param("bf16", marks=pytest.mark.slow), "fp16")


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
@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_everything_is_computed_where_the_inputs_are(subject, kind, precision):
    own = subject(kind)
    (class_id, probabilities), refused = run_posing(load_posing(own.file(precision)), *inputs(own))
    assert refused == []
    with torch.no_grad():
        expected = own.model(*inputs(own)).logits
    if precision == "fp32":
        assert class_id[:, 0].tolist() == expected.argmax(1).tolist()
    assert (probabilities - expected.softmax(1)).abs().max() < {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01}[precision]


@pytest.mark.parametrize("kind", ["bert", "megatron-bert"])
def test_refusing_a_row_happens_on_the_device_too(subject, kind):
    own = subject(kind)
    ids, mask = inputs(own)
    ids[1, 3] = -7
    (class_id, _), refused = run_posing(load_posing(own.file()), ids, mask)
    assert refused == []
    assert [row == -1 for row in class_id[:, 0].tolist()] == [False, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_no_device_is_written_into_the_file(subject, kind, precision):
    path = subject(kind).file(precision)
    assert devices_in_code(path) == []
    assert device_constants(torch.jit.load(str(path))) == []


def devices_in_code(path: Path) -> list[str]:
    """Lines of the file's serialized code that name a device; `device == "cpu"` asks and names none."""
    return re.findall(r".*(?:torch\.device\(|device=\"|\"cuda).*", code(path))


def code(path: Path) -> str:
    """The file's serialized code, all of it."""
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")]
    assert any("def forward" in source for source in sources)
    return "\n".join(sources)


def columns(input_ids: Tensor) -> Tensor:
    return torch.arange(input_ids.size(1), device="cpu")


class Careless(torch.nn.Module):
    """Always uses the CPU: in a function that it calls, which is a separate graph."""

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
@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_on_a_device_that_is_no_cpu_nothing_is_packed(subject, kind, precision):
    file = torch.jit.load(str(subject(kind).file(precision)), map_location="meta")
    linear = linear_layers(file)
    assert linear
    assert all(not module.packed and module.fp16_weight is None for module in linear)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for module in file.modules():
        if hasattr(module, "fp16"):  # linear layers and norms
            assert module.weight.is_meta
            assert module.bias.is_meta
            assert module.weight.dtype == module.bias.dtype == dtypes[precision]
    assert all(parameter.is_meta for parameter in file.parameters())


@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_a_cpu_keeps_packed_weights_and_no_plain_ones(subject, precision):
    """Twice the memory of the weights otherwise. What is saved again is what was loaded."""
    own = subject("bert")
    linear = linear_layers(torch.jit.load(str(own.file(precision))))
    assert all(module.packed != (module.fp16_weight is not None) for module in linear)
    assert all(module.packed == (precision != "fp16") for module in linear)
    assert all(module.weight.numel() == 0 for module in linear)
    assert all(module.packed_weight.numel() == 0 for module in linear if not module.packed)


@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_a_loaded_file_saves_the_weights_that_it_was_loaded_with(subject, tmp_path, precision):
    path = subject("bert").file(precision)
    torch.jit.load(str(path)).save(str(tmp_path / "again.pt"))
    assert tensors(tmp_path / "again.pt") == tensors(path)


def linear_layers(file: torch.jit.ScriptModule) -> list[torch.jit.ScriptModule]:
    return [module for module in file.modules() if hasattr(module, "packed")]


def tensors(path: Path) -> list[bytes]:
    """The content of every tensor in the file, in no particular order."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if re.search(r"/(data|constants)/\d+$", name)]
        return sorted(archive.read(name) for name in names)


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_the_file_holds_plain_weights_once(subject, kind):
    """Packed copies would double it, for one CPU only. Positions: once per token type; distances: once per layer.

    Layers without a bias get one of zeros.
    """
    own = subject(kind)
    parts = encoder_parts(own.model)
    checkpoint = sum(4 * parameter.numel() for parameter in own.model.parameters())
    tables = [layer.distances for layer in parts.layers if layer.distances is not None]
    checkpoint += sum(4 * (table.keys.numel() + table.queries.numel()) for table in tables)
    unbiased = [module for module in own.model.modules() if getattr(module, "bias", 0) is None]
    checkpoint += sum(4 * module.weight.size(0) for module in unbiased)
    checkpoint += sum(4 * rotary.frequencies.numel() for rotary in parts.rotary)
    distances = [p for name, p in own.exported.named_parameters() if name.startswith("logits.distance_")]
    checkpoint += sum(parameter.numel() * parameter.element_size() for parameter in distances)
    if own.checkpoint.token_types == 2:
        checkpoint += 4 * own.model.base_model.embeddings.position_embeddings.weight.numel()
    stored = {precision: sum(map(len, tensors(own.file(precision)))) for precision in PRECISIONS}
    assert 0.8 * checkpoint < stored["fp32"] <= checkpoint
    assert 0.5 * stored["fp32"] < stored["bf16"] <= stored["fp16"] < 0.6 * stored["fp32"]


# Loads the file in a separate process, says which kernels its layers took, and answers.
OTHER_CPU = """
import json, sys, torch
file = torch.jit.load(sys.argv[1]).eval()
linear = [module for module in file.modules() if hasattr(module, "packed")]
kernels = ["FBGEMM" if layer.fp16_weight is not None else "oneDNN" if layer.packed else "plain" for layer in linear]
ids, mask = torch.load(sys.argv[2])
with torch.inference_mode():
    print(json.dumps([sorted(set(kernels)), file(ids, mask)[1].tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "precision", "kernels"),
    [
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "fp16", ["FBGEMM"]),
        # As on ARM, or on an old x86: the operators of FBGEMM are known, and calling them would fail.
        ({"ATEN_CPU_CAPABILITY": "default"}, "fp16", ["oneDNN"]),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "bf16", ["plain"]),
    ],
    ids=str,
)
def test_a_cpu_without_a_kernel_loads_the_same_file_and_answers(subject, tmp_path, environment, precision, kernels):
    own = subject("bert")
    ids, mask = inputs(own)
    torch.save((ids, mask), tmp_path / "inputs.pt")
    command = [sys.executable, "-c", OTHER_CPU, str(own.file(precision)), str(tmp_path / "inputs.pt")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    found, probabilities = json.loads(done.stdout)
    assert found == kernels
    with torch.no_grad():
        expected = own.model(ids, mask).logits.softmax(1)
    assert (torch.tensor(probabilities) - expected).abs().max() < {"fp16": 0.005, "bf16": 0.05}[precision]


@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_a_torch_without_kernels_writes_files_that_do_not_name_them(subject, tmp_path, monkeypatch, precision):
    """A file that names an operator that torch does not know cannot be loaded, whatever it does with it."""
    own = subject("bert")
    assert "ops.mkldnn" in code(own.file(precision))
    assert ("linear_prepack_fp16" in code(own.file(precision))) == (precision == "fp16")
    monkeypatch.setattr(PackedLinear, "kernels", staticmethod(lambda: (False, False)))
    export(own.checkpoint, graphs(own.checkpoint)[0], precision, tmp_path / "model.pt")
    assert "ops.mkldnn" not in code(tmp_path / "model.pt")
    assert "linear_prepack_fp16" not in code(tmp_path / "model.pt")
    with torch.inference_mode():
        _, probabilities = torch.jit.load(str(tmp_path / "model.pt")).eval()(*inputs(own))
        expected = own.model(*inputs(own)).logits.softmax(1)
    assert (probabilities - expected).abs().max() < {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.005}[precision]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", EVERY_PRECISION)
def test_the_same_file_answers_on_a_gpu(subject, precision):
    for own in map(subject, KINDS):
        file = torch.jit.load(str(own.file(precision)), map_location="cuda").eval()
        with torch.inference_mode():
            expected = own.model(*inputs(own)).logits.softmax(1)
            class_id, probabilities = file(*(tensor.cuda() for tensor in inputs(own)))
        assert (probabilities.cpu() - expected).abs().max() < (1e-3 if precision == "fp32" else 0.05)
        assert precision != "fp32" or class_id[:, 0].tolist() == expected.argmax(1).tolist()
