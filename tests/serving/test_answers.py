"""Served answers equal plain Hugging Face's on thousands of texts, in batches of every size."""

import contextlib
import json
import random
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
from safetensors.torch import load_file, save_file

from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from build_scripts.serving.client import Text, classify, inputs, text_input
from tests.support.checkpoints import make_checkpoint
from tests.support.oracle import HuggingFace
from tests.support.servers import RunningServer, running
from tests.support.texts import HEADLINES, HOSTILE, LENGTHS, PAIRS, of_length
from tests.support.waiting import HANG_S, wait_for

MAX_BATCH_SIZE = 64
SOME_BATCH_SIZES = [1, 2, 3, 8, 17, MAX_BATCH_SIZE]
EVERY_BATCH_SIZE = list(range(1, MAX_BATCH_SIZE + 1))


def varied_texts(count: int, seed: int = 0) -> list[str]:
    """Headlines, hostile texts, one of each length up to 100,000 characters, and generated ones, shuffled."""
    generator = random.Random(seed)
    texts = [*HEADLINES, *HOSTILE, *(of_length(length, seed) for length in LENGTHS)]
    generator.shuffle(texts)
    texts = texts[:count]
    texts += [of_length(generator.randint(1, 120), seed + index) for index in range(count - len(texts))]
    generator.shuffle(texts)
    return texts


@contextlib.contextmanager
def server_of(subject, kind: str, directory: Path):
    """A server of a small random checkpoint, Hugging Face's answers for it, and its labels."""
    checkpoint = subject(kind).directory
    options = BuildOptions(model=str(checkpoint), precision="fp32", repository=directory / "repository")
    manifest = build(options).manifest
    arguments = ("--model", str(checkpoint), "--precision", "fp32")
    with running(options.repository, directory / "output.txt", *arguments) as server:
        yield server, HuggingFace(checkpoint, manifest["max_length"]), manifest["labels"]


def served(server: RunningServer, batches: Sequence[list[Text]]) -> tuple[list[int], np.ndarray]:
    """Class ids and probabilities of all texts, one request a batch."""
    class_ids, probabilities = [], []
    with triton.InferenceServerClient(server.grpc) as client:
        for batch in batches:
            result = client.infer("text_classifier", inputs(batch), client_timeout=HANG_S)
            class_ids += result.as_numpy("CLASS_ID")[:, 0].tolist()
            probabilities.append(result.as_numpy("PROBABILITIES"))
    return class_ids, np.concatenate(probabilities)


def cut(texts: list[Text], sizes: list[int]) -> list[list[str]]:
    ends = np.cumsum(sizes).tolist()
    return [texts[end - size : end] for end, size in zip(ends, sizes)]


@pytest.mark.parametrize(
    "sizes", [SOME_BATCH_SIZES, pytest.param(EVERY_BATCH_SIZE, marks=pytest.mark.long)], ids=["some", "every"]
)
def test_texts_in_batches_of_sizes(sizes, default_server, default_oracle: HuggingFace):
    texts = varied_texts(sum(sizes))
    class_ids, probabilities = served(default_server, cut(texts, sizes))
    expected = default_oracle.probabilities(texts).numpy()
    assert class_ids == expected.argmax(1).tolist()
    assert np.abs(probabilities - expected).max() <= 1e-4


@pytest.mark.server
@pytest.mark.long
def test_automatic_precision_stays_within_the_gate(default_oracle: HuggingFace, tmp_path):
    """Asks the default of `make serve` with the curl command that it prints."""
    with running(tmp_path / "repository", tmp_path / "output.txt") as server:
        class_ids, probabilities = served(server, cut(HEADLINES, [50] * 5))
        wait_for(lambda: "  try  " in server.said(), server.said)
        (curl,) = (line for line in server.said().splitlines() if line.startswith("  try  "))
        said = subprocess.run(shlex.split(curl.removeprefix("  try")), capture_output=True, check=True).stdout
        (sports,) = default_oracle.class_ids(["Midfielder scores twice as champions win away"])
        answer = {output["name"]: output["data"] for output in json.loads(said)["outputs"]}
        assert answer["CLASS_ID"] == [sports]
    expected = default_oracle.probabilities(HEADLINES).numpy()
    assert np.abs(probabilities - expected).max() <= 0.02
    best, second = np.sort(expected)[:, ::-1][:, :2].T
    clear = best - second >= 0.01
    assert (np.array(class_ids) == expected.argmax(1))[clear].all()


def test_answer_is_independent_of_its_batch(default_server):
    texts = varied_texts(60, seed=5)
    _, alone = served(default_server, [[text] for text in texts])
    _, together = served(default_server, [texts])
    _, reversed_order = served(default_server, [texts[::-1]])
    assert np.abs(alone - together).max() <= 1e-5
    assert np.abs(alone - reversed_order[::-1]).max() <= 1e-5


@pytest.mark.server
def test_pairs_and_single_texts_of_many_clients(default_server, default_oracle: HuggingFace):
    """They share batches of the classifier without changing each other's answers."""
    generator = random.Random(7)
    asked = [[text] for text in varied_texts(120, seed=9)] + [[pair] for pair in PAIRS * 4]
    asked += [[pair] for pair in zip(varied_texts(60, seed=1), varied_texts(60, seed=2))]
    generator.shuffle(asked)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: served(default_server, [batch]), asked))
    expected = default_oracle.probabilities([batch[0] for batch in asked]).numpy()
    assert [class_ids[0] for class_ids, _ in found] == expected.argmax(1).tolist()
    assert np.abs(np.concatenate([rows for _, rows in found]) - expected).max() <= 1e-4


@pytest.mark.server
@pytest.mark.parametrize(
    "kind", ["bert-chinese", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("roberta", "megatron-bert"))]
)
def test_other_checkpoints_through_the_real_server(kind, subject, tmp_path):
    with server_of(subject, kind, tmp_path) as (server, oracle, labels):
        texts = varied_texts(200, seed=3)
        class_ids, probabilities = served(server, cut(texts, [1, 3, 64, 32, 50, 50]))
        expected = oracle.probabilities(texts).numpy()
        assert class_ids == expected.argmax(1).tolist()
        assert np.abs(probabilities - expected).max() <= 1e-4
        pair_ids, probabilities = served(server, cut(PAIRS, [1, 3, len(PAIRS) - 4]))
        expected = oracle.probabilities(PAIRS).numpy()
        assert pair_ids == expected.argmax(1).tolist()
        assert np.abs(probabilities - expected).max() <= 1e-4
        with triton.InferenceServerClient(server.grpc) as client:
            outputs = [triton.InferRequestedOutput("PROBABILITIES", class_count=1)]
            best = client.infer("text_classifier", [text_input(texts[:10])], outputs=outputs)
        named = [row[0].decode("utf-8").split(":", 2)[2] for row in best.as_numpy("PROBABILITIES")]
        assert named == [labels[index] for index in class_ids[:10]]


@pytest.mark.server
@pytest.mark.parametrize("kind", [pytest.param("bert", marks=pytest.mark.long), "modernbert"])
def test_texts_of_up_to_2048_tokens(kind, tmp_path):
    """Requests of every width at the same time, and texts of all lengths in one request."""
    checkpoint = make_checkpoint(kind, tmp_path / "checkpoint", max_positions=2048)
    options = BuildOptions(model=str(checkpoint), max_length=2048, precision="fp32", repository=tmp_path / "repository")
    build(options)
    arguments = ("--model", str(checkpoint), "--precision", "fp32", "--max-length", "2048")
    texts = ["word " * count for count in (3, 100, 300, 700, 1400, 3000)] + varied_texts(20, seed=4)
    oracle = HuggingFace(checkpoint, 2048)
    tokens = [len(oracle.encode(text)["input_ids"]) for text in texts]
    assert {512, 1024, 2048} <= {next(width for width in (512, 1024, 2048) if count <= width) for count in tokens}
    expected = oracle.probabilities(texts).numpy()
    with running(options.repository, tmp_path / "output.txt", *arguments) as server:
        _, together = served(server, [texts])
        with ThreadPoolExecutor(8) as pool:
            alone = [*pool.map(lambda text: served(server, [[text]])[1][0], texts)]
        with triton.InferenceServerClient(server.grpc) as client:
            result = client.infer("text_classifier", [text_input(texts)])
    assert np.abs(together - expected).max() <= 1e-4
    assert np.abs(np.stack(alone) - expected).max() <= 1e-4
    assert result.as_numpy("TOKENS")[:, 0].tolist() == tokens
    assert result.as_numpy("TRUNCATED")[:, 0].tolist() == [
        len(oracle.tokenizer(text)["input_ids"]) > 2048 for text in texts
    ]


@pytest.mark.server
def test_label_follows_the_class_id_when_sigmoids_are_equal(tmp_path):
    """Every probability is exactly 1. The class id follows the logits, as Hugging Face's does."""
    checkpoint = make_checkpoint("bert", tmp_path / "checkpoint", multi_label=True)
    weights = load_file(checkpoint / "model.safetensors")
    weights["classifier.bias"] += 40
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    options = BuildOptions(model=str(checkpoint), precision="fp32", repository=tmp_path / "repository")
    labels = build(options).manifest["labels"]
    arguments = ("--model", str(checkpoint), "--precision", "fp32")
    with running(options.repository, tmp_path / "output.txt", *arguments) as server:
        answers = list(classify(HEADLINES[:40], server.grpc))
    oracle = HuggingFace(checkpoint, 128)
    encoded = [oracle.tokenizer(text, truncation=True, max_length=128, return_tensors="pt") for text in HEADLINES[:40]]
    with torch.inference_mode():
        expected = [oracle.model(**one).logits.argmax().item() for one in encoded]
    assert len(set(expected)) > 1
    assert [answer.class_id for answer in answers] == expected
    assert [answer.label for answer in answers] == [labels[class_id] for class_id in expected]
    assert {answer.probability for answer in answers} == {1.0}
