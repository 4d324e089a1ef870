"""A reranker behind a real server: a query and passages in, transformers' scores out, over every way to ask."""

from __future__ import annotations

import runpy

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from build_scripts.__main__ import COMMANDS
from build_scripts.core.command_line import run
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.core.paths import PROJECT
from build_scripts.quality.answers import Served
from build_scripts.releases.pipeline import build
from build_scripts.serving.client import inputs
from tests.support.oracle import HuggingFace
from tests.support.servers import running
from tests.support.texts import HEADLINES

PAIRS = [("who wins the cup?", passage) for passage in [*HEADLINES[:20], "", "long " * 600]]


@pytest.mark.server
def test_reranker_answers_pairs_as_transformers_does(subject, tmp_path, monkeypatch, capsys):
    identity = "torch.nn.modules.linear.Identity"
    own = subject("bert", labels=("relevance",), problem_type=None, sbert_ce_default_activation_function=identity)
    options = BuildOptions(model=str(own.directory), precision="fp32", repository=tmp_path / "repository")
    oracle = HuggingFace(own.directory, build(options).manifest["max_length"])
    with torch.inference_mode():
        encoded = [{name: torch.tensor([row]) for name, row in oracle.encode(pair).items()} for pair in PAIRS]
        expected = np.array([oracle.model(**one).logits.item() for one in encoded])
    assert np.ptp(expected) > 0.1
    assert not ((expected >= 0) & (expected <= 1)).all()  # no sigmoid made them
    arguments = ("--model", str(own.directory), "--precision", "fp32")
    with running(options.repository, tmp_path / "output.txt", *arguments) as server:
        with triton.InferenceServerClient(server.grpc) as client:
            result = client.infer("text_classifier", inputs(PAIRS))
        monkeypatch.setenv("SERVER", server.http)
        over_http = runpy.run_path(str(PROJECT / "examples" / "zero_shot.py"))["ask"](PAIRS)
        file = tmp_path / "pairs.tsv"
        file.write_text("".join(f"{query}\t{passage}\n" for query, passage in PAIRS), encoding="utf-8")
        capsys.readouterr()
        assert run(COMMANDS["classify"], ["--file", str(file), "--grpc-port", str(server.address.grpc_port)]) == 0
        printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        with pytest.raises(ServingError, match="gives a score and no classes"):
            Served(server.grpc)
    assert result.as_numpy("CLASS_ID").tolist() == [[0]] * len(PAIRS)
    assert result.as_numpy("PROBABILITIES").shape == (len(PAIRS), 1)
    assert np.abs(result.as_numpy("PROBABILITIES")[:, 0] - expected).max() <= 1e-4
    assert over_http == pytest.approx(expected, abs=1e-4)
    assert [row[:2] for row in printed] == [["0", "relevance"]] * len(PAIRS)
    assert [float(row[2]) for row in printed] == pytest.approx(expected, abs=2e-4)
