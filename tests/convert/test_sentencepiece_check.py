"""Tokenizers with SentencePiece's file only: read as SentencePiece reads it, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from build_scripts.convert.checkpoint import load, serving_tokenizer
from build_scripts.core.errors import ServingError
from build_scripts.core.options import BuildOptions
from build_scripts.releases.pipeline import build
from tests.support import pieces, zoo
from tests.support.oracle import HuggingFace
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["stocks rise again", "a team wins the game", "中文", "wait ... what?! -- no", "unheard-of \u263a letters", ""]


def made(family: str, file: str, directory: Path, **config: object) -> Path:
    return zoo.make(zoo.Row(family, zoo.PACKED, file, config), directory)


@pytest.mark.parametrize(
    ("family", "file", "first", "last", "shift"),
    [
        # fairseq's four special tokens precede the pieces; the file has three of them
        ("xlm-roberta", "sentencepiece.bpe.model", [0], [2], 1),
        # CamemBERT adds four more
        ("camembert", "sentencepiece.bpe.model", [5], [6], 4),
        ("albert", "spiece.model", [2], [3], 0),
        ("deberta-v2", "spm.model", [1], [2], 0),
    ],
)
def test_served_tokenizer_gives_the_ids_of_sentencepiece(family, file, first, last, shift, tmp_path):
    checkpoint = load(made(family, file, tmp_path / "checkpoint"))
    own = sentencepiece.SentencePieceProcessor(model_proto=pieces.content(file))
    served = serving_tokenizer(checkpoint)
    served.no_padding()
    for text in WORDS:
        wanted = [checkpoint.tokenizer.unk_token_id if i == own.unk_id() else i + shift for i in own.encode(text)]
        assert served.encode(text).ids == first + wanted + last


def test_build_from_the_file_alone_answers_like_transformers(tmp_path):
    directory = made("xlm-roberta", "sentencepiece.bpe.model", tmp_path / "checkpoint")
    (directory / "tokenizer_config.json").unlink()
    assert sorted(file.name for file in directory.iterdir()) == [
        "config.json", "model.safetensors", "sentencepiece.bpe.model",
    ]  # fmt: skip
    calibration = tmp_path / "texts.txt"
    calibration.write_text("one\ntwo words\n", encoding="utf-8")
    built = build(
        BuildOptions(
            model=str(directory), precision="fp32", calibration=calibration, repository=tmp_path / "repository"
        )
    )
    checkpoint = load(directory)
    oracle = HuggingFace(directory, checkpoint.max_length)
    texts = [*WORDS, "long " * 700]
    with torch.inference_mode():
        found = torch.jit.load(str(built.release / "model.pt"))(*checkpoint.tokenize(texts))[1]
    assert (found - oracle.probabilities(texts)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize(
    ("family", "file", "says"),
    [
        # transformers 5 drops the space before the first word, and with it [CLS] and [SEP]
        ("fnet", "spiece.model", ["FNetTokenizer", "splits '", ", SentencePiece into ['▁", "expected tokenizer.json"]),
        ("rembert", "sentencepiece.model", ["adds no special token to a text, though it has [CLS]", "save_pretrained"]),
        ("llama", "tokenizer.model", ["TokenizersBackend", "splits '", "expected tokenizer.json"]),
    ],
)
def test_refuses_a_tokenizer_that_contradicts_the_file(family, file, says, tmp_path):
    with pytest.raises(ServingError) as refused:
        load(made(family, file, tmp_path / "checkpoint"))
    assert len(str(refused.value).splitlines()) == 1
    for part in says:
        assert part in str(refused.value)


def test_tokenizer_class_decides_how_the_file_is_read(tmp_path):
    directory = made("llama", "tokenizer.model", tmp_path / "checkpoint")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}), "utf-8")
    own = sentencepiece.SentencePieceProcessor(model_proto=pieces.content("tokenizer.model"))
    assert load(directory).tokenizer("stocks rise again")["input_ids"] == own.encode("stocks rise again")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x0a\x0e", "sentencepiece.bpe.model is no SentencePiece model"),
        (b"", "sentencepiece.bpe.model is no SentencePiece model"),
        (pieces.content("sentencepiece.bpe.model")[:3000], "sentencepiece.bpe.model is no SentencePiece model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 438\n", "git lfs pull"),
    ],
    ids=["damaged", "empty", "cut", "Git LFS pointer"],
)
def test_names_a_damaged_file(content, says, tmp_path):
    directory = made("xlm-roberta", "sentencepiece.bpe.model", tmp_path / "checkpoint")
    (directory / "sentencepiece.bpe.model").write_bytes(content)
    with pytest.raises(ServingError, match=says) as refused:
        load(directory)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "tokenizer_class"), [("spiece.model", None), ("other.model", None), ("spiece.model", "BertTokenizer")]
)
def test_names_a_misnamed_file_and_the_expected_name(name, tokenizer_class, tmp_path):
    directory = made("xlm-roberta", "sentencepiece.bpe.model", tmp_path / "checkpoint")
    (directory / "sentencepiece.bpe.model").rename(directory / name)
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class}), "utf-8")
    looked_for = "vocab.txt" if tokenizer_class else "sentencepiece.bpe.model"
    with pytest.raises(ServingError, match=f"it reads {looked_for} and not {name}; rename the file"):
        load(directory)
