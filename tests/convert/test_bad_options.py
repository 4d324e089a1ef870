"""A build with a bad option ends in one helpful line and leaves the repository unchanged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from build_scripts.core.paths import PROJECT
from tests.convert.test_checkpoint import assert_one_helpful_line, run_repo
from tests.support.trees import snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("asked", [-1, 0, 2, 129, 10**9])
def test_refuses_a_max_length_outside_the_positions(subject, asked, tiny_repository, monkeypatch, capfd):
    before = snapshot(tiny_repository)
    where = ["--model", subject("bert").directory, "--model-repository", tiny_repository]
    stderr = run_repo(monkeypatch, capfd, *where, "--max-length", asked)
    assert_one_helpful_line(stderr, [f"MAX_LENGTH={asked}; expected 3 to 128", "128 positions"])
    assert snapshot(tiny_repository) == before


@pytest.mark.parametrize(
    ("option", "content", "says"),
    [
        ("--calibration", None, ["CALIBRATION=", "no such file", "expected texts, one per line"]),
        ("--calibration", b"", ["CALIBRATION=", "holds no text", "expected texts, one per line"]),
        (
            "--calibration",
            b"good\n caf\xe9\n",
            ["CALIBRATION=", "line 2 is not UTF-8 (at byte 5)", "convert the file"],
        ),
        ("--model-repository", b"", ["cannot be used: File exists", "expected a directory"]),
    ],
)
def test_refuses_a_bad_file(subject, option, content, says, tmp_path, tiny_repository, monkeypatch, capfd):
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    before = snapshot(tiny_repository)
    where = ["--model", subject("bert").directory, "--model-repository", tiny_repository]
    assert_one_helpful_line(run_repo(monkeypatch, capfd, *where, option, file), says)
    assert snapshot(tiny_repository) == before


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("./nowhere", "expected a Hugging Face checkpoint directory"),
        ("/no/where", "expected a Hugging Face checkpoint directory"),
        ("~nobody-of-that-name/x", "expected a Hugging Face checkpoint directory"),
        ("a/b/c", "expected a Hugging Face checkpoint directory"),
        ("x" * 300, "expected a Hugging Face checkpoint directory"),
        ("a b", "check the name"),
        ("a--b", "check the name"),
    ],
)
def test_refuses_an_impossible_hub_id_without_a_request(model, says, tmp_path, monkeypatch, capfd):
    stderr = run_repo(monkeypatch, capfd, "--model", model, "--model-repository", tmp_path)
    assert_one_helpful_line(stderr, [f"MODEL={model}", says])


def repo_process(**environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "build_scripts", "repo"]
    return subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PRECISION", "int4", ["PRECISION=int4; expected one of auto, fp32, bf16, fp16"]),
        ("CALIBRATION", "/no/such/file", ["CALIBRATION=/no/such/file: no such file; expected texts, one per line"]),
    ],
)
def test_bad_variable_ends_the_process_with_one_line(variable, value, says, tiny_repository):
    before = snapshot(tiny_repository)
    done = repo_process(TRITON_TC_MODEL_REPOSITORY=str(tiny_repository), **{f"TRITON_TC_{variable}": value})
    assert done.returncode == 1
    assert_one_helpful_line(done.stderr, says)
    assert snapshot(tiny_repository) == before


def test_hub_id_without_a_network_fails_fast(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    asked = {"TRITON_TC_MODEL": "nobody/no-such-model", "TRITON_TC_MODEL_REPOSITORY": str(tmp_path / "repository")}
    done = repo_process(**asked, **nowhere)
    assert done.returncode == 1
    assert_one_helpful_line(done.stderr, ["MODEL=nobody/no-such-model", "no such directory here", "check the name"])
