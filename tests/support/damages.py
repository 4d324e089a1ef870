"""Changes to a good checkpoint on the disk, most of which make it a bad one."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import make_checkpoint


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


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    content = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(content) and None


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        for one in damages:
            one(directory)

    return damage


def prefixed(prefix: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, directory / "model.safetensors")

    return damage


def trainer_output(directory: Path) -> None:
    """Checkpoints of a training run in a directory that holds none itself; 1500 is later than 500."""
    for step in (500, 1500):
        make_checkpoint("bert", directory / f"checkpoint-{step}")
    remove("config.json", "model.safetensors")(directory)


def best_checkpoint(where: str) -> Callable[[Path], None]:
    """A Trainer's output whose best step is not the last one. where: the directory with trainer_state.json."""

    def damage(directory: Path) -> None:
        trainer_output(directory)
        state = {"best_model_checkpoint": "output/checkpoint-500"}
        (directory / where / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")

    return damage


def hub_cache(directory: Path) -> None:
    """The root of a hub cache, with two snapshots of which refs/main names the older one."""
    for revision in ("aaaa", "bbbb"):
        make_checkpoint("bert", directory / "snapshots" / revision)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("aaaa", encoding="utf-8")
    remove("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")(directory)


def mlflow(directory: Path) -> None:
    """MLflow's transformers flavour: model/ and components/tokenizer/ side by side."""
    make_checkpoint("bert", directory / "model")
    (directory / "components" / "tokenizer").mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / "model" / name).rename(directory / "components" / "tokenizer" / name)
        (directory / name).unlink()
    remove("config.json", "model.safetensors")(directory)


def nested(key: str) -> Callable[[Path], None]:
    return lambda directory: pickled({"epoch": 3, key: load_file(directory / "model.safetensors")})(directory)


def empty_tensors(directory: Path) -> None:
    """As ZeRO-3 saves a model without gathering its weights."""
    weights(lambda tensors: tensors.update({name: torch.zeros(0) for name in tensors}))(directory)
    (directory / "zero_to_fp32.py").write_text("", encoding="utf-8")


def with_mark(name: str) -> Callable[[Path], None]:
    return lambda directory: write(name, codecs.BOM_UTF8 + (directory / name).read_bytes())(directory)


def pickled(content: object) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        torch.save(content, directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()

    return damage


def relative_positions(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.encoder.layer.0.attention.self.distance_embedding.weight"] = torch.ones(255, 8)


def tokenizer_without_words(directory: Path) -> None:
    """PhoBERT's files read as RoBERTa's: the special tokens only."""
    transformers.RobertaTokenizer(
        vocab={"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}, merges=[]
    ).save_pretrained(directory)


def unknown_words(directory: Path) -> None:
    """A vocabulary without its unknown token."""
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"].pop("[UNK]")
    added = [token for token in content["added_tokens"] if token["content"] != "[UNK]"]
    edit(file, model=content["model"], added_tokens=added)


def one_shard_of_two(directory: Path) -> None:
    """As an interrupted copy leaves it."""
    names = dict.fromkeys(load_file(directory / "model.safetensors"), "model-00001-of-00002.safetensors")
    names["classifier.bias"] = "model-00002-of-00002.safetensors"
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": names}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


ADAPTER = '{"base_model_name_or_path": "some/base", "peft_type": "LORA"}'


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 438\n"
