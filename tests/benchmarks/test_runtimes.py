"""`make bench` times every runtime on the same batches, each in a separate process."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import psutil
import pytest
import torch

from build_scripts.benchmarks import bench, runtimes
from build_scripts.benchmarks.flask_service import export_onnx
from build_scripts.core.errors import ServingError

LENGTHS = [5, 2, 40]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_other_runtimes_agree_with_hugging_face(subject, tmp_path, kind, monkeypatch):
    if kind == "openvino":
        pytest.importorskip("openvino")
        # By default it computes in bf16 where the CPU has it, and then agrees less.
        monkeypatch.setattr(runtimes, "openvino", partial(runtimes.openvino, precision="f32"))
    own = subject("bert")
    ids, mask = bench.random_batch(own.checkpoint, LENGTHS)
    export_onnx(own.checkpoint, tmp_path / "model.onnx")
    trimmed = runtimes.inputs_of(kind, ids, mask)
    assert [tuple(one.shape) for one in trimmed] == [(3, 40), (3, 40)]
    with torch.inference_mode():
        expected = own.model(input_ids=ids, attention_mask=mask).logits
        found = runtimes.call_of(kind, tmp_path / "model.onnx")(*trimmed)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_only_the_file_and_the_padded_model_get_padding():
    ids, mask = torch.ones(2, 128, dtype=torch.int64), torch.zeros(2, 128, dtype=torch.int64)
    mask[:, :9] = 1
    widths = {kind: runtimes.inputs_of(kind, ids, mask)[0].shape[1] for kind in runtimes.KINDS}
    assert {kind for kind, width in widths.items() if width == 128} == {runtimes.FILE, runtimes.PADDED}
    assert set(widths.values()) == {9, 128}


@pytest.mark.slow
def test_every_runtime_is_measured_and_its_process_ends(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(runtimes, "ROUNDS", 2)
    before = set(psutil.Process().children(recursive=True))  # servers of other tests
    own = subject("bert")
    own.exported.save(str(tmp_path / "model.pt"))
    onnx = tmp_path / "model.onnx"
    export_onnx(own.checkpoint, onnx)
    lengths = {"one": [8], "3": LENGTHS, "3, equal": [16, 16, 15]}
    batches = {name: bench.random_batch(own.checkpoint, each) for name, each in lengths.items()}
    kinds = {"file": ("file", tmp_path / "model.pt"), "onnx": ("onnx", onnx)}
    found = runtimes.measure(kinds, batches, tmp_path, 60.0)
    assert list(found) == list(kinds)
    assert set(found["file"]) == {"one", "3", "3, equal"}
    assert set(found["onnx"]) == {"one", "3"}
    for seconds in (times for batches in found.values() for times in batches.values()):
        assert len(seconds) >= 2
        assert all(time > 0 for time in seconds)
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.slow
def test_the_file_runs_with_the_heap_settings_of_the_backend(tmp_path, subject, monkeypatch):
    own, called = subject("bert"), []
    own.exported.save(str(tmp_path / "model.pt"))
    monkeypatch.setattr(runtimes, "keep_large_blocks", lambda: called.append("file"))
    runtimes.call_of("product", tmp_path)
    runtimes.call_of("trimmed", own.directory)
    assert not called
    runtimes.call_of("file", tmp_path / "model.pt")
    assert called == ["file"]


def test_a_first_call_over_the_limit_is_the_only_one(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(runtimes, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert runtimes.turn_seconds(lambda: None, most=0.5) == [1]
    assert runtimes.turn_seconds(lambda: None, most=1) == [1]
    quick = iter(range(1000))
    monkeypatch.setattr(runtimes, "time", SimpleNamespace(perf_counter=lambda: next(quick) * runtimes.TURN_S / 100))
    assert len(runtimes.turn_seconds(lambda: None, most=1)) == runtimes.MOST_CALLS


@pytest.mark.slow
def test_failing_runtime_is_named_with_its_log(tmp_path):
    torch.save({"one": (torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64))}, tmp_path / "b.pt")
    log = tmp_path / "file.log"
    (tmp_path / "model.pt").write_bytes(b"no model")
    with runtimes.running("file", tmp_path / "model.pt", tmp_path / "b.pt", 1.0, log) as turn:  # noqa: SIM117
        with pytest.raises(ServingError, match=rf"^file failed on 'one', code 1; see {log}$"):
            turn("one")
    assert "RuntimeError" in log.read_text()


def test_failing_export_gives_the_reason(subject, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    expected = r"^torch cannot export this bert to ONNX \(RuntimeError: no such operator\)$"
    with pytest.raises(ServingError, match=expected):
        export_onnx(subject("bert").checkpoint, tmp_path / "model.onnx")
