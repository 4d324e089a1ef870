"""Directories that are no good checkpoint: one line with what was found and the next step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from build_scripts.convert.checkpoint import load
from build_scripts.core.errors import ServingError
from tests.support.checkpoints import make_checkpoint
from tests.support.damages import (
    ADAPTER,
    LFS,
    best_checkpoint,
    both,
    config,
    edit,
    empty_tensors,
    hub_cache,
    mlflow,
    nested,
    one_shard_of_two,
    pickled,
    prefixed,
    relative_positions,
    remove,
    tokenizer_config,
    tokenizer_without_words,
    trainer_output,
    unknown_words,
    weights,
    with_mark,
    write,
)

pytestmark = pytest.mark.usefixtures("one_thread")


CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "adapter only": (
        both(remove("model.safetensors", "config.json"), write("adapter_config.json", ADAPTER)),
        ["an adapter only (of some/base)", "merge_and_unload()"],
    ),
    "adapter only, with a config": (
        both(remove("model.safetensors"), write("adapter_config.json", ADAPTER), write("adapter_model.bin", "x")),
        ["an adapter only (of some/base)", "merge_and_unload()"],
    ),
    "adapter beside full weights": (
        write("adapter_config.json", ADAPTER),
        ["full weights and an adapter", "merge_and_unload()", "remove adapter_config.json"],
    ),
    "a Trainer's output": (trainer_output, ["no config.json, but checkpoint-1500 has one", "MODEL="]),
    "a Trainer's output with a best checkpoint": (
        best_checkpoint("."),
        ["no config.json, but checkpoint-500 has one", "/checkpoint-500"],
    ),
    "a Trainer's output with a best checkpoint in the last state": (
        best_checkpoint("checkpoint-1500"),
        ["no config.json, but checkpoint-500 has one"],
    ),
    "the root of a hub cache": (hub_cache, ["no config.json, but snapshots/aaaa has one: MODEL=", "/snapshots/aaaa"]),
    "MLflow's directory": (mlflow, ["but model has one: MODEL=", "/model TOKENIZER=", "/components/tokenizer"]),
    "shards of ZeRO-3": (
        both(remove("model.safetensors"), write("zero_to_fp32.py", "")),
        ["cannot be loaded: they are shards of DeepSpeed ZeRO-3", "python zero_to_fp32.py . OUTPUT"],
    ),
    "empty tensors of ZeRO-3": (empty_tensors, ["are empty: they are shards of DeepSpeed", "zero_to_fp32.py"]),
    "shards of FSDP": (
        both(remove("model.safetensors"), lambda directory: (directory / "pytorch_model_fsdp_0").mkdir()),
        ["they are shards of FSDP", "accelerate merge-weights", "/pytorch_model_fsdp_0"],
    ),
    "weights under a key": (nested("state_dict"), ["pytorch_model.bin in", "under the key 'state_dict'", "save_pre"]),
    "weights under another key": (nested("model"), ["under the key 'model'"]),
    "a byte order mark in tokenizer_config.json": (
        with_mark("tokenizer_config.json"),
        ["cannot be loaded: tokenizer_config.json begins with a byte order mark; save it"],
    ),
    "a byte order mark in config.json": (
        with_mark("config.json"),
        ["cannot be used: config.json begins with a byte order mark; save it"],
    ),
    "a newer format of tokenizer.json": (
        lambda directory: edit(directory / "tokenizer.json", version="2.0"),
        ["Unknown tokenizer version '2.0'", "written by transformers", "tokenizers 0.", "read format 1.0"],
    ),
    "a newer kind of tokenizer.json": (
        lambda directory: edit(directory / "tokenizer.json", model={"type": "Newer"}),
        ["did not match any variant", "written by transformers", "tokenizers 0.", "read format 1.0"],
    ),
    "20,000 ids of labels": (
        config(id2label={str(index + 1): "x" for index in range(20_000)}),
        ["has the ids 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 19990 more; expected 0 to 19999"],
    ),
    "Git LFS pointer": (write("model.safetensors", LFS), ["model.safetensors is a Git LFS pointer", "git lfs pull"]),
    "Git LFS pointer where the tokenizer was": (
        write("tokenizer.json", LFS),
        ["tokenizer.json is a Git LFS pointer", "git lfs pull"],
    ),
    "Git LFS pointer where the vocabulary was": (
        both(remove("tokenizer.json"), write("vocab.txt", LFS)),
        ["vocab.txt is a Git LFS pointer", "git lfs pull"],
    ),
    "a shard is missing": (
        one_shard_of_two,
        ["model-00002-of-00002.safetensors is missing (1 file(s)", "download or copy it, too"],
    ),
    "no shard is there": (
        both(one_shard_of_two, remove("model-00001-of-00002.safetensors")),
        ["model-00001-of-00002.safetensors is missing (2 file(s)"],
    ),
    "TensorFlow only": (
        both(remove("model.safetensors"), write("tf_model.h5", "x")),
        ["only TensorFlow's tf_model.h5", "save_pretrained"],
    ),
    "Flax only": (
        both(remove("model.safetensors"), write("flax_model.msgpack", "x")),
        ["only Flax's flax_model.msgpack"],
    ),
    "ONNX only": (both(remove("model.safetensors"), write("model.onnx", "x")), ["only ONNX's model.onnx"]),
    "DataParallel's names": (prefixed("module."), ["begin with 'module.'", "model.module", "save_pretrained"]),
    "compile's names": (prefixed("_orig_mod."), ["begin with '_orig_mod.'", "model._orig_mod", "save_pretrained"]),
    "another number of labels": (
        config(id2label={str(index): f"l{index}" for index in range(9)}),
        ["classifier.bias has the shape [6]", "names 9 labels, asks for [9]", "mend id2label"],
    ),
    "quantised": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        ["has a quantization_config", "save the classifier unquantised"],
    ),
    "unsafe pickle": (pickled({"f": os.system}), ["a pickle", "could run code", "safetensors"]),
    "strict config error": (
        config(hidden_size="wide"),
        ["config.json cannot be used", "'hidden_size': TypeError: Field 'hidden_size' expected int, got str"],
    ),
    "sizes that contradict each other": (
        config(num_attention_heads=5),
        ["config.json cannot be used", "hidden size (32) is not a multiple", "config.json of the training run"],
    ),
    "an activation that nobody knows": (
        config(hidden_act="no_such"),
        ["config.json cannot be used", "no bert can be made of it", "no_such"],
    ),
    "a model that needs another library": (
        config(model_type="layoutlmv2"),
        ["holds a layoutlmv2", "needs more than this project installs", "detectron2", "plain texts"],
    ),
    "a tokenizer that needs another library": (
        tokenizer_config(tokenizer_class="FlaubertTokenizer"),
        ["tokenizer", "needs more than this project installs", "sacremoses", "tokenizer.json alone"],
    ),
    "a tokenizer of words in boxes": (
        tokenizer_config(tokenizer_class="LayoutLMv2Tokenizer"),
        ["cannot classify 'a'", "bounding boxes", "plain texts"],
    ),
    "model_max_length is no number": (
        tokenizer_config(model_max_length="128"),
        ["model_max_length in", "is '128'", "expected a number"],
    ),
    "relative positions, which transformers 5 drops": (
        both(weights(relative_positions), config(position_embedding_type="relative_key")),
        ["position_embedding_type='relative_key'", "ignores it for bert"],
    ),
    "more layers in the weights than in the config": (
        config(num_hidden_layers=2),
        ["bert.encoder.layer.2.", "have no place", "not answer as trained"],
    ),
    "tokenizer without words": (
        both(remove("tokenizer.json", "tokenizer_config.json"), tokenizer_without_words),
        ["knows 5 tokens, 0 of them not special", "500 rows", "save the tokenizer"],
    ),
    "missing unknown token": (unknown_words, ["cannot classify", "Missing [UNK] token"]),
    "custom code": (
        config(
            model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForSequenceClassification": "mine.M"}
        ),
        ["its own Python code", "never run here"],
    ),
    "no classifier of this kind": (config(model_type="whisper"), ["whisper", "no text classifier"]),
    "a label that is half a character": (
        config(id2label={str(i): "\ud83d" for i in range(6)}),
        ["label 0", "mend id2label"],
    ),
    "a label that is null": (
        config(id2label={"0": None, **{str(i): "x" for i in range(1, 6)}}),
        ["label 0", "is None", "mend id2label"],
    ),
    "labels that are objects": (
        config(id2label={str(i): {"name": "x"} for i in range(6)}),
        ["label 0", "is {'name': 'x'}", "mend id2label"],
    ),
    "config.json is a directory": (
        both(remove("config.json"), lambda directory: (directory / "config.json").mkdir()),
        ["has no config.json", "expected"],
    ),
    "tokenizer.json is a directory": (
        both(remove("tokenizer.json"), lambda directory: (directory / "tokenizer.json").mkdir()),
        ["knows 5 tokens, 0 of them not special"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses_in_one_line_with_the_next_step(name, tmp_path):
    damage, says = CASES[name]
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    damage(directory)
    with pytest.raises(ServingError) as refused:
        load(directory)
    assert len(str(refused.value).splitlines()) == 1
    for part in says:
        assert part in str(refused.value)


def test_never_runs_custom_code_and_never_asks(tmp_path, monkeypatch):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    (directory / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n", encoding="utf-8")
    edit(directory / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    edit(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]}, tokenizer_class="T")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ServingError, match="its own Python code"):
        load(directory)
    assert not (tmp_path / "ran").exists()


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_runs_no_code_in_a_pickle(tmp_path):
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    tensors = load_file(directory / "model.safetensors")
    pickled({**tensors, "more": Runs(tmp_path / "ran")})(directory)
    with pytest.raises(ServingError, match="could run code"):
        load(directory)
    assert not (tmp_path / "ran").exists()
    torch.load(directory / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # the loader made the difference
