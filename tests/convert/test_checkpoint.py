"""A build with bad input ends in one helpful line and leaves the repository unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from build_scripts import __main__ as command_line
from build_scripts.convert.checkpoint import load, serving_tokenizer
from build_scripts.convert.tokenizer import check_vocabulary, pad_id
from build_scripts.core.errors import ServingError
from build_scripts.core.paths import PROJECT
from tests.support.checkpoints import make_checkpoint, make_tokenizer
from tests.support.texts import VARIED
from tests.support.trees import assert_complete, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")


def edit(file: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf-8")


def config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "config.json", **changes)


def tokenizer_config(**changes: object) -> Callable[[Path], None]:
    return lambda directory: edit(directory / "tokenizer_config.json", **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """Rewrite model.safetensors after `change` edited the tensors."""

    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return damage


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


@pytest.mark.parametrize("asked", [-1, 0, 2, 129, 10**9])
def test_refuses_a_max_length_outside_the_positions(subject, asked, tiny_repository, monkeypatch, capfd):
    before = snapshot(tiny_repository)
    where = ["--model", subject("bert").directory, "--model-repository", tiny_repository]
    stderr = run_repo(monkeypatch, capfd, *where, "--max-length", asked)
    assert_one_helpful_line(stderr, [f"MAX_LENGTH={asked}; expected 3 to 128", "128 positions"])
    assert snapshot(tiny_repository) == before


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "distilbert", "albert", "modernbert", "deberta-v2"])
def test_usable_positions_bound_max_length(subject, kind):
    """RoBERTa and its kin keep rows that no column of a text uses."""
    assert load(subject(kind).directory).max_length == 128
    assert load(subject(kind).directory, 3).max_length == 3
    with pytest.raises(ServingError, match="MAX_LENGTH=129; expected 3 to 128"):
        load(subject(kind).directory, 129)


def test_more_than_512_tokens_only_on_request(subject):
    directory = subject("bert", max_positions=9000).directory
    assert load(directory).max_length == 512
    assert load(directory, 8192).max_length == 8192
    with pytest.raises(ServingError, match=r"MAX_LENGTH=8193; expected 3 to 8192: .* 9000 positions"):
        load(directory, 8193)


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


@pytest.mark.parametrize(
    ("of_config", "of_tokenizer", "expected"),
    [(0, 5, 0), (9, 5, 9), (10, 5, 5), (-1, 5, 5), (None, 0, 0), (None, 10, 0), (None, None, 0)],
)
def test_padding_is_the_first_id_within_the_embedding(of_config, of_tokenizer, expected):
    config, tokenizer = SimpleNamespace(pad_token_id=of_config), SimpleNamespace(pad_token_id=of_tokenizer)
    assert pad_id(tokenizer, config, rows=10) == expected


def test_vocabulary_may_fill_the_embedding_and_no_more(subject):
    tokenizer = subject("bert").tokenizer
    rows = max(tokenizer.get_vocab().values()) + 1
    check_vocabulary(tokenizer, rows, subject("bert").directory)
    with pytest.raises(ServingError, match=f"{rows - 1} rows"):
        check_vocabulary(tokenizer, rows - 1, subject("bert").directory)


# The same through a real process: nothing else may reach stderr there either, and the exit code is the shell's.


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


def test_ignores_the_padding_side_of_a_checkpoint(subject, tmp_path):
    """A mask hides the padding, and the server pads on the right."""
    directory = make_checkpoint("bert", tmp_path / "checkpoint")
    edit(directory / "tokenizer_config.json", padding_side="left")
    expected = subject("bert").checkpoint.tokenize(VARIED)
    found = load(directory).tokenize(VARIED)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))
    served = serving_tokenizer(load(directory)).encode_batch(VARIED)
    assert [encoding.ids for encoding in served] == found[0].tolist()
