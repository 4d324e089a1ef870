"""A build with bad input ends in one helpful line and leaves the repository unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from build_scripts import __main__ as command_line
from tests.support.checkpoints import make_checkpoint, make_tokenizer
from tests.support.damages import config, edit, remove, tokenizer_config, weights
from tests.support.trees import assert_complete, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


def truncate(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])

    return damage


def replace_with(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Replace the checkpoint by something else."""

    def damage(directory: Path) -> None:
        for file in directory.iterdir():
            file.unlink()
        make(directory)

    return damage


def file_in_its_place(directory: Path) -> None:
    directory.rmdir()
    directory.write_text("not a directory", encoding="utf-8")


def other_model(model_class: type) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        model_class(transformers.AutoConfig.from_pretrained(directory)).save_pretrained(directory)

    return damage


def slow_tokenizer(directory: Path) -> None:
    vocabulary = make_tokenizer("bert", 128).get_vocab()
    for name in ("vocab.txt", "prophetnet.tokenizer"):
        (directory / name).write_text("\n".join(sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    edit(directory / "tokenizer_config.json", tokenizer_class="ProphetNetTokenizer")
    (directory / "tokenizer.json").unlink()


# Damage to a good checkpoint, and the parts of the message: found, expected, next step.
DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "empty directory": (replace_with(lambda directory: None), ["is empty", "expected config.json"]),
    "missing directory": (replace_with(Path.rmdir), ["nothing there", "expected a Hugging Face checkpoint directory"]),
    "file instead of a directory": (replace_with(file_in_its_place), ["a file", "expected a Hugging Face checkpoint"]),
    "no config": (remove("config.json"), ["has no config.json", "expected", "save_pretrained"]),
    "damaged config": (truncate("config.json"), ["config.json cannot be used", "not a valid JSON", "save_pretrained"]),
    "config of another shape": (config(id2label=["a", "b"]), ["config.json cannot be used", "save_pretrained"]),
    "config of wrong types": (config(hidden_size="wide"), ["config.json cannot be used", "hidden_size"]),
    "unknown architecture": (config(model_type="brent"), ["config.json cannot be used", "brent"]),
    "masked language model": (
        other_model(transformers.BertForMaskedLM),
        ["BertForMaskedLM", "not a sequence classifier", "fine-tune it with AutoModelForSequenceClassification"],
    ),
    "headless model": (
        lambda directory: (other_model(transformers.BertModel)(directory), config(architectures=None)(directory)),
        ["lack 2 tensor(s), such as classifier.bias", "expected a complete fine-tuned classifier", "save"],
    ),
    "regression of several labels": (
        config(problem_type="regression"),
        ["has 6 labels and problem type regression", "expected", "one label"],
    ),
    "no label": (config(id2label={}, label2id={}, problem_type=None), ["has 0 labels", "expected", "one label"]),
    "gap in the labels": (config(id2label=dict.fromkeys("012349", "x")), ["ids 0, 1, 2, 3, 4, 9; expected 0 to 5"]),
    "label that is no line": (
        config(id2label={str(index): "two\nlines" for index in range(6)}),
        ["label 0", "'two\\nlines'", "expected one non-empty line", "mend id2label"],
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        ["has no tokenizer", "expected tokenizer.json"],
    ),
    "no vocabulary": (remove("tokenizer.json"), ["has no tokenizer", "expected tokenizer.json", "save_pretrained"]),
    "damaged tokenizer": (truncate("tokenizer.json"), ["no usable tokenizer", "expected tokenizer.json", "save"]),
    "slow tokenizer": (slow_tokenizer, ["no fast tokenizer (found ProphetNetTokenizer)", "expected tokenizer.json"]),
    "split special tokens": (
        tokenizer_config(split_special_tokens=True),
        ["split_special_tokens", "expected it unset"],
    ),
    "tokenizer of a longer vocabulary": (
        lambda directory: make_tokenizer("bert-chinese", 128).save_pretrained(directory),
        [
            "token ids up to 513, the model's embedding only 500 rows",
            "use the tokenizer that the model was trained with",
        ],
    ),
    "tokenizer that takes nothing": (
        tokenizer_config(model_max_length=1),
        ["MAX_LENGTH=1, the tokenizer's model_max_length; expected 3 to 128"],
    ),
    "no weights": (remove("model.safetensors"), ["weights", "cannot be loaded", "no file named model.safetensors"]),
    "truncated weights": (truncate("model.safetensors"), ["weights", "cannot be loaded", "SafetensorError", "again"]),
    "missing tensors": (
        weights(lambda tensors: (tensors.pop("classifier.weight"), tensors.pop("classifier.bias"))),
        ["lack 2 tensor(s), such as classifier.bias", "save the checkpoint again"],
    ),
    "weights of another shape": (
        weights(lambda tensors: tensors.update({"classifier.bias": torch.zeros(3)})),
        ["classifier.bias has the shape [3]", "config.json, which names 6 labels, asks for [6]", "mend id2label"],
    ),
    "NaN in the weights": (
        weights(lambda tensors: tensors["classifier.bias"].fill_(float("nan"))),
        ["not finite numbers", "damaged or its training diverged"],
    ),
}


def run_repo(monkeypatch, capfd, *arguments: object) -> str:
    """The command line in this process: what it prints on stderr, after it exited with 1."""
    monkeypatch.setattr(sys, "argv", ["build_scripts", "repo", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command_line.main()
    assert exit_.value.code == 1
    return capfd.readouterr().err


def assert_one_helpful_line(stderr: str, says: list[str]) -> None:
    assert stderr.startswith("error: ")
    assert stderr.endswith("\n")
    assert len(stderr.splitlines()) == 1, stderr
    for part in says:
        assert part in stderr


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_checkpoint_ends_in_one_line_and_changes_nothing(name, tmp_path, tiny_repository, monkeypatch, capfd):
    damage, says = DAMAGES[name]
    checkpoint = make_checkpoint("bert", tmp_path / "checkpoint")
    damage(checkpoint)
    before = snapshot(tiny_repository)
    stderr = run_repo(monkeypatch, capfd, "--model", checkpoint, "--model-repository", tiny_repository)
    assert_one_helpful_line(stderr, says)
    assert snapshot(tiny_repository) == before
    assert_complete(tiny_repository)


# The same through a real process: nothing else may reach stderr there either, and the exit code is the shell's.
