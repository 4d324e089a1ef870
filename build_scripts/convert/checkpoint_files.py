"""Explain why a checkpoint directory is incomplete, from its file names and their first bytes."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import torch

from build_scripts.core.errors import ServingError

WEIGHTS = ("*.safetensors", "*.bin")
LFS_POINTER = b"version https://git-lfs"
OTHER_FORMATS = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "*.onnx": "ONNX",
    "model.ckpt*": "TensorFlow",
    "rust_model.ot": "Rust",
    "*.gguf": "GGUF",
    "openvino_model.bin": "OpenVINO",
}


def refuse_incomplete(path: Path) -> None:
    """Raise ServingError if config.json is missing. The message says what the directory holds instead."""
    if not any(path.iterdir()):
        raise ServingError(f"{path} is empty; expected config.json, the weights and tokenizer files")
    if (path / "config.json").is_file():
        return
    if inside := _checkpoint_inside(path):
        tokenizer = f" TOKENIZER={_mlflow_tokenizer(inside)}" if _mlflow_tokenizer(inside) else ""
        raise ServingError(
            f"{path} has no config.json, but {inside.relative_to(path)} has one: MODEL={inside}{tokenizer}"
        )
    if (path / "adapter_config.json").is_file():
        raise ServingError(_adapter_only(path))
    raise ServingError(f"{path} has no config.json; expected the directory that save_pretrained wrote")


def has_custom_code(path: Path) -> bool:
    return bool(_json(path / "config.json").get("auto_map"))


def adapter(path: Path) -> str | None:
    """Why a directory with an adapter cannot be served; None if it has none."""
    if not (path / "adapter_config.json").is_file():
        return None
    if not weight_files(path):
        return _adapter_only(path)
    return (
        f"{path} holds full weights and an adapter (adapter_config.json), which may be merged or not; if not, save the "
        "result of merge_and_unload() to a separate directory; if they are, remove adapter_config.json"
    )


def weight_files(path: Path) -> list[Path]:
    """The files that could hold the model's weights."""
    found = [file for pattern in WEIGHTS for file in sorted(path.glob(pattern))]
    others = ("adapter_", "training_args", "optimizer", "scheduler", "openvino")
    return [file for file in found if not file.name.startswith(others)]


def lfs_pointer(path: Path, names: list[str]) -> str | None:
    """The first file that is a Git LFS pointer, with the next step; None if there is no such file."""
    for file in [path / name for name in names]:
        if file.is_file():
            with file.open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    return f"{file.name} is a Git LFS pointer, not the file; run `git lfs pull`, or download it again"
    return None


def weights(path: Path, error: Exception) -> str | None:
    """Why loading the weights raised `error`, with the next step; None if unknown."""
    if pointer := lfs_pointer(path, [file.name for file in weight_files(path)]):
        return pointer
    if "Weights only load failed" in str(error) or "UnpicklingError" in type(error).__name__:
        return (
            "they are a pickle that is damaged or holds more than tensors; loading such a file could run code; "
            "save the model as safetensors (save_pretrained)"
        )
    if missing := _missing_shards(path):
        return f"{missing[0]} is missing ({len(missing)} file(s) that the index names); download or copy it, too"
    if weight_files(path):
        return None
    if shards := sharded_training_state(path):
        return shards
    if inside := _checkpoint_inside(path):
        return f"there are none, but {inside.relative_to(path)} has some: MODEL={inside}"
    for pattern, name in OTHER_FORMATS.items():
        if found := sorted(path.glob(pattern)):
            return (
                f"no file named model.safetensors or pytorch_model.bin, only {name}'s {found[0].name}; save the model "
                "with PyTorch (save_pretrained)"
            )
    return "no file named model.safetensors or pytorch_model.bin; save the model with save_pretrained"


def _adapter_only(path: Path) -> str:
    base = _json(path / "adapter_config.json").get("base_model_name_or_path", "its base model")
    return (
        f"{path} holds an adapter only (of {base}); merge it into the model with peft's merge_and_unload(), save the "
        "result and the tokenizer with save_pretrained, and pass that directory as MODEL"
    )


def _missing_shards(path: Path) -> list[str]:
    """Shards that a weight index names and the directory lacks."""
    named: set[str] = set()
    for index in (path / "model.safetensors.index.json", path / "pytorch_model.bin.index.json"):
        names = _json(index).get("weight_map")
        named |= {str(name) for name in names.values()} if isinstance(names, dict) else set()
    return sorted(name for name in named if not (path / name).is_file())


def sharded_training_state(path: Path) -> str | None:
    """How to merge the shards of DeepSpeed ZeRO-3 or FSDP into weights; None without such shards."""
    if (path / "zero_to_fp32.py").is_file():
        return (
            "they are shards of DeepSpeed ZeRO-3; merge them with `python zero_to_fp32.py . OUTPUT` in that directory, "
            "and copy config.json and the tokenizer's files to OUTPUT"
        )
    if found := sorted(path.glob("pytorch_model_fsdp*")):
        return f"they are shards of FSDP; merge them with `accelerate merge-weights {found[0]} {path}`"
    return None


def nested_key(path: Path) -> str | None:
    """The key of pytorch_model.bin that holds the weights, if they are not at the top level."""
    file = path / "pytorch_model.bin"
    if not file.is_file() or list(path.glob("*.safetensors")):
        return None
    content = torch.load(file, map_location="meta", weights_only=True)
    return next((key for key, value in content.items() if isinstance(value, dict) and "." in "".join(value)), None)


def byte_order_mark(path: Path) -> str | None:
    """The first JSON file that begins with a byte order mark, with the next step; None if there is no such file."""
    for file in sorted(path.glob("*.json")):
        with file.open("rb") as opened:
            if opened.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                return f"{file.name} begins with a byte order mark; save it as UTF-8 without one"
    return None


def tokenizer_beside(path: Path) -> str:
    """Next step for a missing tokenizer: the option for the directory where MLflow keeps it, or to save it."""
    found = _mlflow_tokenizer(path)
    return f"TOKENIZER={found}" if found else "save the tokenizer beside the model with tokenizer.save_pretrained"


def _mlflow_tokenizer(model: Path) -> Path | None:
    directory = model.parent / "components" / "tokenizer"
    return directory if directory.is_dir() else None


def _checkpoint_inside(path: Path) -> Path | None:
    """The checkpoint in a subdirectory, or None.

    Of a Trainer's output the best checkpoint by trainer_state.json, else the last. Of a hub cache the current snapshot.
    """
    found = [file.parent for file in path.glob("*/config.json") if weight_files(file.parent)]
    snapshots = [file.parent for file in path.glob("snapshots/*/config.json")]
    if snapshots:
        main = path / "refs" / "main"
        current = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        return next(
            (one for one in snapshots if one.name == current), max(snapshots, key=lambda one: one.stat().st_mtime)
        )
    found.sort(key=lambda directory: (len(directory.name), directory.name))
    states = [_json(directory / "trainer_state.json") for directory in (path, *reversed(found))]
    best = [Path(str(state["best_model_checkpoint"])).name for state in states if state.get("best_model_checkpoint")]
    return next((one for one in found if best and one.name == best[0]), found[-1] if found else None)


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
