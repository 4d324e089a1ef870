"""The message of a server that is ready."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from build_scripts.core.options import Address
from build_scripts.serving.start import start_message
from build_scripts.serving.start.installation import Installation

INSTALLATION = Installation(Path("tritonserver"), "a stand-in")
MANIFEST = {
    "checkpoint": "/models/mine",
    "architecture": "bert",
    "release": "0123456789ab",
    "precision": "bf16",
    "labels": ["finance", "sports"],
}


def message(monkeypatch, native: list[str], gpu: bool = False) -> str:
    monkeypatch.setattr(start_message, "require_release", lambda *_: MANIFEST)
    monkeypatch.setattr(start_message, "cpu_precisions", lambda: native)
    monkeypatch.setattr(start_message, "has_gpu", lambda: gpu)
    return start_message.start_message(INSTALLATION, Path("repository"), Address("0.0.0.0", 9000, 9001, 9002))


def test_warns_of_emulated_precision(monkeypatch):
    assert "warning    this CPU emulates bf16" in message(monkeypatch, ["fp32"])


@pytest.mark.parametrize(("native", "gpu"), [(["fp32", "bf16"], False), (["fp32"], True)], ids=["CPU", "GPU"])
def test_does_not_warn_of_native_precision(monkeypatch, native, gpu):
    assert "warning" not in message(monkeypatch, native, gpu)


def test_names_the_model_and_all_addresses(monkeypatch):
    said = message(monkeypatch, ["fp32", "bf16"])
    for line in (
        "server     a stand-in",
        "model      /models/mine (bert, release 0123456789ab)",
        "precision  bf16",
        "labels     finance, sports",
        "HTTP       http://127.0.0.1:9000/v2/models/text_classifier",
        "gRPC       127.0.0.1:9001",
        "metrics    http://127.0.0.1:9002/metrics",
    ):
        assert line in said


def test_the_example_uses_infer(monkeypatch):
    """`infer` says 503 under overload, `generate` 400. (That a server answers it: see the examples of the docs.)"""
    (line,) = [line for line in message(monkeypatch, ["fp32"]).splitlines() if line.startswith("  try ")]
    curl, silent, url, data, body = shlex.split(line.removeprefix("  try "))
    assert (curl, silent, url, data) == ("curl", "-s", "127.0.0.1:9000/v2/models/text_classifier/infer", "-d")
    assert json.loads(body)["inputs"][0]["name"] == "TEXT"


@pytest.mark.parametrize("embedded", [False, True], ids=["NVIDIA's backend", "embedded"])
def test_warns_of_different_threads_with_nvidias_backend_only(monkeypatch, tmp_path, embedded):
    for classifier, threads in {"classifier": "2", "classifier_topic": "1"}.items():
        (tmp_path / classifier).mkdir()
        setting = f'parameters {{ key: "INTRA_OP_THREAD_COUNT", value: {{ string_value: "{threads}" }} }}'
        (tmp_path / classifier / "config.pbtxt").write_text(setting, encoding="utf-8")
    monkeypatch.setattr(start_message, "require_release", lambda *_: MANIFEST)
    monkeypatch.setattr(start_message, "cpu_precisions", lambda: ["bf16"])
    monkeypatch.setattr(start_message, "names", lambda _: ["text_classifier", "topic"])
    installation = replace(INSTALLATION, embedded=embedded)
    said = start_message.start_message(installation, tmp_path, Address())
    warned = "  warning    INTRA_OP_THREAD_COUNT is 2 in classifier, 1 in classifier_topic; NVIDIA's backend" in said
    assert warned is not embedded
