"""Whole documents behind a real server: long texts in, the pooled answers of transformers' windows out."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.quality.answers import InProcess
from build_scripts.releases.pipeline import build
from build_scripts.releases.summary import print_build
from build_scripts.serving.client import inputs
from tests.support.oracle import HuggingFace
from tests.support.servers import running
from tests.support.texts import HEADLINES, VARIED
from tests.support.waiting import HANG_S

STRIDE = 20
LONG = [" ".join((4 * HEADLINES)[start : start + count]) for start, count in enumerate([12, 15, 25, 40, 80])]
TEXTS = [*HEADLINES[:10], *LONG, *VARIED[:20]]
TOO_LONG = "word " * 9000


def expected(oracle: HuggingFace, texts: list[str], pooling: str) -> torch.Tensor:
    """(texts, labels): transformers on each window of its tokenizer, pooled."""
    found = []
    with torch.inference_mode():
        for text in texts:
            limits = {"truncation": True, "max_length": oracle.max_length, "stride": STRIDE}
            windows = oracle.tokenizer(text, return_overflowing_tokens=True, **limits)["input_ids"]
            logits = torch.cat([oracle.model(torch.tensor([window])).logits for window in windows])
            answers = logits.sigmoid() if oracle.multi_label else logits
            pooled = answers.mean(0) if pooling == "mean" else answers.amax(0)
            found.append(pooled if oracle.multi_label else pooled.softmax(0))
    return torch.stack(found)


@pytest.mark.server
def test_long_texts_get_the_pooled_answer_of_their_windows(subject, tmp_path, capsys):
    own = subject("bert")
    options = BuildOptions(
        model=str(own.directory), precision="fp32", repository=tmp_path / "repository", documents="mean", stride=STRIDE
    )
    built = build(options)
    capsys.readouterr()
    print_build(built)
    assert "mean of up to 64 windows that share 20 tokens" in " ".join(capsys.readouterr().out.split())
    assert built.manifest["documents"] == {"pooling": "mean", "stride": 20, "windows": 64, "tokens": 128 + 63 * 106}
    oracle = HuggingFace(own.directory, built.manifest["max_length"])
    wanted = expected(oracle, TEXTS, "mean").numpy()
    counts = [[len(ids)] for ids in oracle.tokenizer(TEXTS)["input_ids"]]
    arguments = ("--model", str(own.directory), "--precision", "fp32", "--documents", "mean", "--stride", str(STRIDE))
    with running(options.repository, tmp_path / "output.txt", *arguments) as server:
        with triton.InferenceServerClient(server.grpc) as client:
            together = client.infer("text_classifier", inputs(TEXTS))
            alone = [client.infer("text_classifier", inputs([text])) for text in TEXTS]
            cut = client.infer("text_classifier", inputs([TOO_LONG]))
        tensor = {"name": "TEXT", "shape": [len(TEXTS), 1], "datatype": "BYTES", "data": TEXTS}
        response = httpx.post(
            f"{server.http}/v2/models/text_classifier/infer", json={"inputs": [tensor]}, timeout=HANG_S
        )
    over_grpc = {name: together.as_numpy(name) for name in ("PROBABILITIES", "CLASS_ID", "TOKENS", "TRUNCATED")}
    over_http = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in response.json()["outputs"]}
    for answer in (over_grpc, over_http):
        assert np.abs(answer["PROBABILITIES"] - wanted).max() <= 1e-4
        assert answer["CLASS_ID"][:, 0].tolist() == wanted.argmax(1).tolist()
        assert answer["TOKENS"].tolist() == counts
        assert not answer["TRUNCATED"].any()
    assert np.abs(np.concatenate([one.as_numpy("PROBABILITIES") for one in alone]) - wanted).max() <= 1e-4
    assert cut.as_numpy("TRUNCATED").tolist() == [[True]]
    assert cut.as_numpy("TOKENS").tolist() == [[built.manifest["documents"]["tokens"]]]
    in_process = [batch.probabilities for batch in InProcess(built.release).answers(TEXTS)]
    assert np.abs(np.concatenate(in_process) - wanted).max() <= 1e-4


def test_builds_for_multi_label_and_maximum(subject, tmp_path):
    own = subject("bert", multi_label=True)
    options = BuildOptions(
        model=str(own.directory), precision="fp32", repository=tmp_path, documents="max", stride=STRIDE
    )
    built = build(options)
    oracle = HuggingFace(own.directory, built.manifest["max_length"])
    (found,) = InProcess(built.release).answers(TEXTS)
    assert np.abs(found.probabilities - expected(oracle, TEXTS, "max").numpy()).max() <= 1e-4


def test_refuses_a_traced_checkpoint(subject, tmp_path):
    options = BuildOptions(model=str(subject("megatron-bert").directory), repository=tmp_path, documents="mean")
    with pytest.raises(ServingError, match="DOCUMENTS: this megatron-bert is traced"):
        build(options)


@pytest.mark.parametrize(
    ("documents", "stride", "says"),
    [
        ("sum", None, "DOCUMENTS=sum; expected one of mean, max"),
        ("", 3, "STRIDE=3: DOCUMENTS is missing"),
        ("mean", 126, "STRIDE=126; expected 0 to 125"),
    ],
)
def test_refuses_bad_options(subject, tmp_path, documents, stride, says):
    with pytest.raises(ServingError, match=says):
        build(BuildOptions(str(subject("bert").directory), repository=tmp_path, documents=documents, stride=stride))
