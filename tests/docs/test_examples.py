"""The files in examples/ run and answer like Hugging Face, on a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import httpx
import nbformat
import pytest

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.paths import PROJECT
from tests.support.servers import running
from tests.support.waiting import HANG_S

EXAMPLES = PROJECT / "examples"
NOTEBOOK = EXAMPLES / "classify.ipynb"
ODD = 'He said "goal" \\ #1 for $5 \t in 上海'


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def best(answer: dict) -> list[int]:
    """Class ids of an answer to a request with classification: 1."""
    return [int(row.split(":")[1]) for row in answer["outputs"][0]["data"]]


@pytest.mark.server
def test_the_notebook_runs_and_answers_like_hugging_face(default_server, default_oracle, tmp_path):
    executed = tmp_path / "executed.ipynb"
    # The notebook's default address is port 8000; this server listens elsewhere.
    run(
        *(sys.executable, "-m", "jupyter", "execute", str(NOTEBOOK), f"--output={executed}"),
        SERVER=default_server.http,
        GRPC_SERVER=default_server.grpc,
    )
    outputs = [output for cell in nbformat.read(executed, 4).cells for output in cell.get("outputs", [])]
    # The answers' probabilities, and the confusion matrix.
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    texts = [
        "Central bank holds interest rates as inflation slows",
        "Midfielder scores twice as champions win away",
        "Telescope finds water vapour around a distant planet",
    ]
    class_ids = default_oracle.class_ids(texts)
    assert f"({class_ids}, (3, 10))" in [output.get("data", {}).get("text/plain") for output in outputs]


def test_the_notebook_is_committed_without_outputs():
    cells = nbformat.read(NOTEBOOK, 4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []


@pytest.mark.server
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl_classifies_any_text(default_server, default_oracle):
    texts = ["Midfielder scores twice as champions win away", ODD]
    answer = json.loads(run(str(EXAMPLES / "classify.sh"), *texts, SERVER=default_server.http))
    assert best(answer) == default_oracle.class_ids(texts)


@pytest.mark.server
@pytest.mark.skipif(not shutil.which("java"), reason="no JDK is installed")
def test_java_classifies_any_text(default_server, default_oracle):
    # A JVM reads its arguments in the encoding of the locale.
    said = run("java", str(EXAMPLES / "Classify.java"), ODD, default_server.http, LC_ALL="C.UTF-8")
    status, answer = said.split(" ", 1)
    assert status == "200"
    assert best(json.loads(answer)) == default_oracle.class_ids([ODD])


@pytest.mark.server
@pytest.mark.long
def test_a_chinese_classifier_is_trained_built_and_served(tmp_path):
    checkpoint = tmp_path / "chinese-classifier"
    said = run(sys.executable, str(EXAMPLES / "fine_tune_chinese.py"), "--output", str(checkpoint))
    right = int(said.split(" of 12 held-out sentences right")[0].split()[-1])
    assert right >= 7  # chance is a third
    with running(tmp_path / "repository", tmp_path / "output.txt", "--model", str(checkpoint)) as server:
        body = infer_body(["球队夺得冠军", "银行利率下调"])
        body["outputs"] = [{"name": "PROBABILITIES", "parameters": {"classification": 1}}]
        answer = httpx.post(f"{server.http}/v2/models/text_classifier/infer", json=body, timeout=HANG_S).json()
    assert [row.split(":")[2] for row in answer["outputs"][0]["data"]] == ["体育", "财经"]
