"""A file holds plain weights once; each CPU packs them for the kernels that it has."""

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

from build_scripts.convert.export import export, graphs
from build_scripts.convert.families import encoder_parts
from build_scripts.graph.packed_linear import PackedLinear
from tests.graph.test_portability import EVERY_PRECISION, code
from tests.support.checkpoints import PACKED_KINDS
from tests.support.token_batches import inputs

pytestmark = pytest.mark.usefixtures("one_thread")
PRECISIONS = ("fp32", "bf16", "fp16")


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
