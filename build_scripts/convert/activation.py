"""Read from a checkpoint what its logits become: probabilities, or the score of a checkpoint with one label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from transformers import PretrainedConfig

from build_scripts.core.errors import ServingError

# softmax: one label a text. sigmoid: several labels, or a score from 0 to 1. identity: a score without bounds.
Activation = Literal["softmax", "sigmoid", "identity"]
# What sentence-transformers writes for a cross-encoder: a class of torch.
NAMED: dict[str, Activation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}


def activation(config: PretrainedConfig, path: Path) -> Activation:
    """Raises ServingError for a score whose activation is neither a sigmoid nor the identity.

    Without a word from sentence-transformers, a score is what transformers' pipeline makes of it: the logit for a
    regression, else its sigmoid.
    """
    if config.num_labels > 1:
        return "sigmoid" if config.problem_type == "multi_label_classification" else "softmax"
    if named := _named(config, path):
        file, name = named
        if name not in NAMED:
            raise ServingError(
                f"{path}/{file} asks for the activation {name!r} of a checkpoint with one label; expected "
                f"{' or '.join(NAMED)}"
            )
        return NAMED[name]
    return "identity" if config.problem_type == "regression" else "sigmoid"


def _named(config: PretrainedConfig, path: Path) -> tuple[str, object] | None:
    """The file of sentence-transformers that names an activation, and the name; the newest layout first."""
    file = "config_sentence_transformers.json"
    newest = json.loads((path / file).read_text(encoding="utf-8")) if (path / file).is_file() else {}
    nested = getattr(config, "sentence_transformers", None) or {}
    oldest = getattr(config, "sbert_ce_default_activation_function", None)
    for where, name in (
        (file, newest.get("activation_fn")),
        ("config.json", nested.get("activation_fn")),
        ("config.json", oldest),
    ):
        if name is not None:
            return where, name
    return None
