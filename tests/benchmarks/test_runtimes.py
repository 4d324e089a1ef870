"""`make bench` times every runtime on the batch that it says, in a process of its own."""

from __future__ import annotations

import psutil
import pytest
import torch

from build_scripts.benchmarks import bench, runtimes
from build_scripts.benchmarks.flask_service import export_onnx
from build_scripts.core.errors import ServingError

LENGTHS = [5, 2, 40]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_the_other_runtimes_compute_what_hugging_face_does(subject, tmp_path, kind):
    if kind == "openvino":
        pytest.importorskip("openvino")
    own = subject("bert")
    ids, mask = bench.random_batch(own.checkpoint, LENGTHS)
    export_onnx(own.checkpoint, tmp_path / "model.onnx")
    trimmed = runtimes.inputs_of(kind, ids, mask)
    assert [tuple(one.shape) for one in trimmed] == [(3, 40), (3, 40)]
    with torch.inference_mode():
        expected = own.model(input_ids=ids, attention_mask=mask).logits
        found = runtimes.call_of(kind, tmp_path / "model.onnx")(*trimmed)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_file_is_given_its_batch_padded():
    ids, mask = torch.ones(2, 128, dtype=torch.int64), torch.zeros(2, 128, dtype=torch.int64)
    mask[:, :9] = 1
    assert [one.shape for one in runtimes.inputs_of("torch", ids, mask)] == [(2, 128)] * 2
    assert [one.shape for one in runtimes.inputs_of("onnx", ids, mask)] == [(2, 9)] * 2


@pytest.mark.slow
def test_runtimes_take_turns_in_processes_that_end_with_the_measurement(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "ROUNDS", 2)
    before = set(psutil.Process().children(recursive=True))  # servers of other tests
    own = subject("bert")
    own.exported.save(str(tmp_path / "model.pt"))
    batches = {
        name: bench.random_batch(own.checkpoint, lengths) for name, lengths in {"one": [8], "3": LENGTHS}.items()
    }
    found = runtimes.measure({"fp32": tmp_path / "model.pt"}, own.checkpoint, batches, tmp_path)
    assert {"fp32", runtimes.BASELINE} <= found.keys() <= {"fp32", runtimes.BASELINE, "OpenVINO"}
    for seconds in found.values():
        assert {batch: len(times) >= 2 for batch, times in seconds.items()} == {"one": True, "3": True}
        assert all(time > 0 for times in seconds.values() for time in times)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.slow
def test_a_runtime_that_fails_is_named_with_its_log(tmp_path):
    torch.save({"one": (torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64))}, tmp_path / "b.pt")
    log = tmp_path / "torch.log"
    (tmp_path / "model.pt").write_bytes(b"no model")
    with runtimes.running("torch", tmp_path / "model.pt", tmp_path / "b.pt", log) as turn:  # noqa: SIM117
        with pytest.raises(ServingError, match=rf"^torch failed on 'one', code 1; see {log}$"):
            turn("one")
    assert "RuntimeError" in log.read_text()


def test_times_stand_beside_the_share_of_the_baseline():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    found = {"fp16": {"a": [0.004, 0.003, 0.9]}, runtimes.BASELINE: {"a": [0.005, 0.005, 0.1]}}
    table = runtimes.section(found, {"a": (mask, mask)})[-1].splitlines()
    assert table[0] == "| batch | tokens | ONNX Runtime ms | fp16 ms |"
    assert table[2:] == ["| a | 4 | 5.00 | 4.00 (0.80) |"]


def test_a_model_that_cannot_be_exported_is_named_with_the_reason(subject, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    expected = r"^torch cannot export this bert to ONNX \(RuntimeError: no such operator\)$"
    with pytest.raises(ServingError, match=expected):
        export_onnx(subject("bert").checkpoint, tmp_path / "model.onnx")
