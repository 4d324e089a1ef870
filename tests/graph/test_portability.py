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

from build_scripts.convert.traced import device_constants
from tests.support.checkpoints import KINDS
from tests.support.posing import load_posing, run_posing
from tests.support.token_batches import inputs

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_PRECISION = ("fp32", pytest.param("bf16", marks=pytest.mark.slow), "fp16")


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
