"""Find the directory of the checkpoint that MODEL names: on this disk, or downloaded from the hub.

A download takes only the files that a build reads: no other framework's weights, no training state, no second copy.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError

from build_scripts.core.errors import ServingError

HUB_TIMEOUT_S = 10.0
# Top folder only: checkpoint-500/ or onnx/ hold another model, or a second copy.
TEXT_FILES = ("*.json", "*.txt", "*.model")
# Weight files in order of preference.
SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


def resolve(model: str) -> Path:
    """The directory of a checkpoint: itself, or the local copy of a hub id, `name` or `name@revision`.

    Raises ServingError if there is neither.
    """
    try:
        path = Path(model).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown user, a NUL
        raise ServingError(f"MODEL={model}: {error}; expected a Hugging Face checkpoint directory") from error
    if path.is_dir():
        return path
    name, _, revision = model.partition("@")
    if exists or model.startswith((".", "/", "~")) or name.count("/") > 1:
        found = "a file" if exists else "nothing there"
        raise ServingError(f"MODEL={model}: {found}; expected a Hugging Face checkpoint directory, or a hub id")
    try:
        return download(name, revision or None)
    except (OSError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ServingError(
            f"MODEL={model}: no such directory here, and the hub gave none ({reason}); "
            "check the name, the network, or log in with `hf auth login`"
        ) from error


def download(name: str, revision: str | None = None) -> Path:
    """The local copy of a hub repository. revision: a branch, a tag or a commit."""
    try:
        # Not list_repo_files, which has no timeout for an unreachable hub.
        siblings = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S).siblings or []
        wanted = needed([sibling.rfilename for sibling in siblings])
    except HFValidationError:
        raise
    except Exception:  # HTTP libraries raise various types; the download below uses the cache, or reports the error
        wanted = [*TEXT_FILES, *SAFETENSORS, *PICKLED]
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))


def needed(files: list[str]) -> list[str]:
    """The files of a repository that a build reads."""
    own = [file for file in files if "/" not in file]
    weights = [matching(own, SAFETENSORS), matching(own, PICKLED)]
    chosen = next((some for some in weights if some), [])
    other_index = "*.bin.index.json" if weights[0] else "*.safetensors.index.json"
    texts = [file for file in matching(own, TEXT_FILES) if not fnmatch.fnmatch(file, other_index)]
    return texts + chosen


def matching(files: list[str], patterns: tuple[str, ...]) -> list[str]:
    return [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)]
