"""Checkpoint layouts that plain transformers accepts are served with the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, processors

from build_scripts.convert.checkpoint import load, serving_tokenizer
from build_scripts.core.errors import ServingError
from tests.support import zoo
from tests.support.checkpoints import make_checkpoint, make_tokenizer
from tests.support.damages import config, edit, tokenizer_config, weights
from tests.support.fp32_file import fp32_file
from tests.support.oracle import HuggingFace
from tests.support.token_batches import MAX_LOGIT_ERROR

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a", "Plain words here", "one [SEP] two [PAD] three", "long " * 200]


def answers(directory: Path, scratch: Path, texts: list[str]) -> torch.Tensor:
    """The built file's probabilities for a batch."""
    checkpoint = load(directory)
    _, file = fp32_file(checkpoint, scratch)
    with torch.inference_mode():
        return torch.jit.load(str(file))(*checkpoint.tokenize(texts))[1]


def unlimited(value: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        file = directory / "tokenizer_config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**content, "model_max_length": value}), encoding="utf-8")

    return change


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "architectures left over from the base": config(architectures=["BertForMaskedLM"]),
    "architectures of one's own name": config(architectures=["MyTopicModel"]),
    "no architectures": config(architectures=None),
    "return_dict": config(return_dict=False),
    "torchscript": config(torchscript=True),
    "output_attentions": config(output_attentions=True, output_hidden_states=True, use_cache=True),
    "flash attention": config(_attn_implementation="flash_attention_2", attn_implementation="flash_attention_2"),
    "model_max_length Infinity": unlimited(float("inf")),
    "model_max_length 0": unlimited(0),
    "model_max_length -1": unlimited(-1),
    "no attention_mask among the inputs": tokenizer_config(model_input_names=["input_ids", "token_type_ids"]),
    "tensors that older versions stored": weights(
        lambda tensors: tensors.update(
            {"bert.embeddings.position_ids": torch.arange(128)[None], "cls.predictions.bias": torch.zeros(500)}
        )
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.slow
def test_flags_and_leftovers_of_training_change_no_answer(name, subject, tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    LAYOUTS[name](directory)
    expected = HuggingFace(subject("bert").directory, 128).probabilities(TEXTS)
    assert (answers(directory, tmp_path, TEXTS) - expected).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.slow
def test_text_without_tokens_becomes_one_padding_token(tmp_path):
    """transformers fails at it; the classifier counts the first column, which the tokenizer fills with padding."""
    directory = zoo.make(next(row for row in zoo.ROWS if row.family == "gpt2"), tmp_path / "checkpoint")
    checkpoint = load(directory)
    assert checkpoint.tokenizer("")["input_ids"] == []
    with torch.inference_mode():
        pad = torch.tensor([[checkpoint.pad_id]])
        expected = HuggingFace(directory, 128).model(input_ids=pad).logits.softmax(-1)
    assert (answers(directory, tmp_path, [""]) - expected).abs().max() < MAX_LOGIT_ERROR
    assert (answers(directory, tmp_path, ["a", "", "some words"])[1:2] - expected).abs().max() < MAX_LOGIT_ERROR
    assert set(serving_tokenizer(checkpoint).encode("").ids) == {checkpoint.pad_id}


def template(single: str, pair: str) -> Callable[[Path], None]:
    """Another post-processor in tokenizer.json, as newer fast tokenizers bring it."""

    def change(directory: Path) -> None:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
        tokenizer.save(str(directory / "tokenizer.json"))
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", model_input_names=inputs)

    return change


def test_serves_a_tokenizer_that_adds_no_special_token(tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    template("$A", "$A $B:1")(directory)
    assert load(directory).tokenizer("")["input_ids"] == []
    oracle = HuggingFace(directory, 128)
    with torch.inference_mode():
        pad = oracle.model(input_ids=torch.tensor([[0]])).logits.softmax(-1)
    expected = torch.cat([oracle.probabilities(TEXTS), pad])
    assert (answers(directory, tmp_path, [*TEXTS, ""]) - expected).abs().max() < MAX_LOGIT_ERROR


def test_passes_a_constant_token_type_on(tmp_path):
    """A tokenizer may give all tokens of a single text the type 1; the model was trained with that."""
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    template("[CLS]:1 $A:1 [SEP]:1", "[CLS]:1 $A:1 [SEP]:1 $B:1 [SEP]:1")(directory)
    oracle = HuggingFace(directory, 128)
    assert set(oracle.encode("a")["token_type_ids"]) == {1}
    assert (answers(directory, tmp_path, TEXTS) - oracle.probabilities(TEXTS)).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.slow
def test_serves_a_tokenizer_without_a_padding_token(subject, tmp_path):
    """The mask hides what fills up a row, whatever it is."""
    directory = make_checkpoint("modernbert", tmp_path / "checkpoint")
    tokenizer = make_tokenizer("modernbert", 128)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(directory)
    expected = HuggingFace(subject("modernbert").directory, 128).probabilities(TEXTS)
    assert (answers(directory, tmp_path, TEXTS) - expected).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.slow
def test_pads_with_the_models_own_padding_id(tmp_path):
    """Llama and its kin find the end of a text by config.pad_token_id."""
    row = next(row for row in zoo.ROWS if row.family == "llama")
    directory = zoo.make(row, tmp_path / "checkpoint")
    unk = transformers.AutoTokenizer.from_pretrained(directory).convert_tokens_to_ids("<unk>")
    edit(directory / "config.json", pad_token_id=unk)
    checkpoint = load(directory)
    assert checkpoint.pad_id == unk != checkpoint.tokenizer.pad_token_id
    texts = ["a", "Plain words here", "one <pad>", "one <unk> two"]
    expected = HuggingFace(directory, 128).probabilities(texts)
    assert (answers(directory, tmp_path, texts) - expected).abs().max() < MAX_LOGIT_ERROR


def test_uses_all_positions_with_any_tokenizer(tmp_path):
    """Multilingual MiniLM is a BERT with XLM-R's tokenizer; its positions do not start after a padding id."""
    directory = make_checkpoint("bert", tmp_path / "checkpoint", vocab_size=600)
    tokenizer = make_tokenizer("xlm-roberta", 512)
    tokenizer.save_pretrained(directory)
    edit(directory / "config.json", pad_token_id=tokenizer.pad_token_id)
    assert load(directory).max_length == 128


def test_accepts_an_extra_token_that_no_text_produces(tmp_path, subject):
    """An entry of the vocabulary that the tokenizer's own normalizer makes unreachable: it lowercases."""
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["UPPER"] = 500
    file.write_text(json.dumps(content), encoding="utf-8")
    expected = HuggingFace(subject("bert").directory, 128).probabilities(TEXTS)
    assert (answers(directory, tmp_path, TEXTS) - expected).abs().max() < MAX_LOGIT_ERROR


def test_names_an_extra_token_that_a_text_produces(tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    tokenizer = make_tokenizer("bert", 128)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(directory)
    with pytest.raises(ServingError, match=r"ids up to 500.*only 500 rows.*'<extra>'"):
        load(directory)
