"""Whole documents, scores and long texts from one package: over HTTP, gRPC and perf_analyzer, and in the image."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import PROJECT
from build_scripts.releases.package import package
from build_scripts.releases.pipeline import build
from tests.deploy.conftest import await_well
from tests.serving.test_served_documents import LONG, STRIDE, expected
from tests.support.checkpoints import make_checkpoint
from tests.support.oracle import HuggingFace
from tests.support.servers import perf_analyzer_failure, running
from tests.support.texts import HEADLINES
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.server
PAIRS = [("who wins the cup?", passage) for passage in HEADLINES[:6]]
LONGEST = 2048
# Prints each classifier's probabilities or scores, over HTTP and over gRPC, as JSON.
ASK = """
import json, sys, urllib.request
import tritonclient.grpc as triton
from build_scripts.benchmarks.services import infer_body
from build_scripts.serving.client import inputs
http, grpc = sys.argv[1:3]
found = {}
for name, texts in json.load(sys.stdin).items():
    columns = [list(column) for column in zip(*texts)] if isinstance(texts[0], list) else [texts]
    with urllib.request.urlopen(f"{http}/v2/models/{name}/infer", json.dumps(infer_body(*columns)).encode()) as answer:
        outputs = {output["name"]: output for output in json.load(answer)["outputs"]}
    with triton.InferenceServerClient(grpc) as client:
        result = client.infer(name, inputs([tuple(one) if isinstance(one, list) else one for one in texts]))
    shape = outputs["PROBABILITIES"]["shape"]
    assert list(result.as_numpy("PROBABILITIES").shape) == shape
    found[name] = [outputs["PROBABILITIES"]["data"], result.as_numpy("PROBABILITIES").ravel().tolist()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def kinds(subject, tmp_path_factory) -> tuple[Path, dict[str, list], dict[str, np.ndarray]]:
    """A package with a classifier of each kind; texts, and what transformers answers, by name."""
    directory = tmp_path_factory.mktemp("kinds")
    identity = "torch.nn.modules.linear.Identity"
    bert = subject("bert")
    score = subject("bert", labels=("relevance",), problem_type=None, sbert_ce_default_activation_function=identity)
    modern = make_checkpoint("modernbert", directory / "modernbert", max_positions=LONGEST)
    build_as(directory, ENSEMBLE, bert.directory, documents="mean", stride=STRIDE)
    build_as(directory, "score", score.directory)
    build_as(directory, "long", modern, max_length=LONGEST)
    texts = {ENSEMBLE: LONG, "score": PAIRS, "long": ["word " * count for count in (3, 600, 1900)]}
    oracle = HuggingFace(score.directory, 128)
    with torch.inference_mode():
        encoded = [{name: torch.tensor([row]) for name, row in oracle.encode(pair).items()} for pair in PAIRS]
        scores = np.array([oracle.model(**one).logits.item() for one in encoded])
    answers = {
        ENSEMBLE: expected(HuggingFace(bert.directory, 128), LONG, "mean").numpy().ravel(),
        "score": scores,
        "long": HuggingFace(modern, LONGEST).probabilities(texts["long"]).numpy().ravel(),
    }
    return package(directory / "repository", directory / "package").directory, texts, answers


def build_as(directory: Path, name: str, checkpoint: Path, **options) -> None:
    build(
        BuildOptions(model=str(checkpoint), name=name, precision="fp32", repository=directory / "repository", **options)
    )


def check(kinds, directory: Path, http: str, grpc: str, within: list[str]) -> None:
    _, texts, answers = kinds
    command = [*within, sys.executable, "-c", ASK, http, grpc]
    done = subprocess.run(command, cwd=PROJECT, input=json.dumps(texts), capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    for name, ways in json.loads(done.stdout).items():
        for found in ways:
            assert found == pytest.approx(answers[name], abs=1e-4), name
        columns = zip(("TEXT", "TEXT_PAIR"), zip(*texts[name])) if name == "score" else [("TEXT", texts[name])]
        data = directory / f"{name}.json"
        data.write_text(json.dumps({"data": [{column: values[-1:] for column, values in columns}]}), encoding="utf-8")
        for protocol, url in (("http", http), ("grpc", grpc)):
            arguments = ["--input-data", str(data), "-i", protocol]
            assert perf_analyzer_failure(url, name, *arguments, within=within) is None


def test_a_package_gives_every_kind_of_answer(kinds, tmp_path):
    with running(kinds[0] / "model_repository", tmp_path / "output.txt") as server:
        check(kinds, tmp_path, server.http, server.grpc, [])


def test_the_image_gives_every_kind_of_answer(kinds, start: Callable, network, tmp_path):
    one = start(23, models=kinds[0] / "model_repository")
    await_well(one)
    check(kinds, tmp_path, one.http, f"{one.address}:8001", network.enter(network.balancer))
    one.remove()
