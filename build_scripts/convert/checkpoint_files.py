"""Explain a directory that is no complete checkpoint, from file names and first bytes."""

from __future__ import annotations

import json
from pathlib import Path

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
    """Raises ServingError if there is no config.json, with what is there instead."""
    if not any(path.iterdir()):
        raise ServingError(f"{path} is empty; expected config.json, the weights and tokenizer files")
    if (path / "config.json").is_file():
        return
    if inside := _checkpoints_inside(path):
        raise ServingError(f"{path} has no config.json, but {inside[-1].name} in it has one: MODEL={inside[-1]}")
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
        f"{path} holds full weights and an adapter (adapter_config.json), and nothing says whether they are merged; "
        "save merge_and_unload() of the model to a separate directory, or remove adapter_config.json"
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
    """The fault of weights whose loading raised `error`, with the next step; None if unknown."""
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
    if inside := _checkpoints_inside(path):
        return f"there are none, but {inside[-1].name} in it has some: MODEL={inside[-1]}"
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
        f"{path} holds an adapter only (of {base}); merge it into the model with merge_and_unload() of peft, save that "
        "and the tokenizer with save_pretrained, and take that directory"
    )


def _missing_shards(path: Path) -> list[str]:
    """Files that an index of weights names and that are not there."""
    named: set[str] = set()
    for index in (path / "model.safetensors.index.json", path / "pytorch_model.bin.index.json"):
        names = _json(index).get("weight_map")
        named |= {str(name) for name in names.values()} if isinstance(names, dict) else set()
    return sorted(name for name in named if not (path / name).is_file())


def _checkpoints_inside(path: Path) -> list[Path]:
    """Directories in `path` that look like checkpoints; a Trainer's in the order of their steps."""
    inside = [file.parent for file in path.glob("*/config.json") if weight_files(file.parent)]
    return sorted(inside, key=lambda directory: (len(directory.name), directory.name))


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
