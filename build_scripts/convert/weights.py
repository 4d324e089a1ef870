"""Read config and weights of a checkpoint as fp32, and refuse weights that are not the trained classifier."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from build_scripts.convert import checkpoint_files, config_traps
from build_scripts.convert.error_guard import first_line
from build_scripts.core.errors import ServingError
from build_scripts.core.options import LONGEST_MAX_LENGTH

# Flags that training scripts leave in config.json and that change a forward's output.
FORWARD_FLAGS = {
    "return_dict": True,
    "torchscript": False,
    "use_cache": False,
    "output_attentions": False,
    "output_hidden_states": False,
}
# Tensors that older versions of transformers stored and newer ones compute.
RECOMPUTED = re.compile(r"(position_ids|token_type_ids|inv_freq|attn\.(masked_)?bias|masked_bias)$")


def load_config(path: Path) -> PretrainedConfig:
    """config.json with the flags that serving needs. Raises ServingError."""
    checkpoint_files.refuse_incomplete(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # errors of any type, depending on the damage
        if checkpoint_files.has_custom_code(path):
            raise ServingError(_custom_code(path)) from error
        reason = checkpoint_files.byte_order_mark(path) or f"{first_line(error)}; expected what save_pretrained wrote"
        raise ServingError(f"{path}/config.json cannot be used: {reason}") from error
    if getattr(config, "quantization_config", None):
        raise ServingError(
            f"{path}/config.json has a quantization_config: the weights are quantised, which only the library that "
            "quantised them can read; save the classifier unquantised (dequantize() and save_pretrained)"
        )
    config_traps.settle(config, path)
    for name, value in FORWARD_FLAGS.items():
        setattr(config, name, value)
    return config


def load_model(path: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The classifier in fp32, in eval mode, with every tensor from the checkpoint. Raises ServingError."""
    if adapter := checkpoint_files.adapter(path):
        raise ServingError(adapter)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            # a training run may leave flash attention in the config, which cannot run fp32 on a CPU
            attn_implementation=None if _attention(config) in ("eager", "sdpa") else "eager",
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # errors of any type, depending on the reader
        if "Unrecognized configuration class" in str(error):
            reason = _custom_code(path) if checkpoint_files.has_custom_code(path) else None
            raise ServingError(
                reason
                or f"{path} holds a {config.model_type}, for which transformers has no text classifier; expected one "
                "that AutoModelForSequenceClassification loads"
            ) from error
        if isinstance(error, ImportError):
            raise ServingError(
                f"{path} holds a {config.model_type}, for which transformers needs more than this project installs "
                f"({first_line(error)}); expected an architecture for plain texts"
            ) from error
        if reason := _no_model_of(config):
            raise ServingError(
                f"{path}/config.json cannot be used: no {config.model_type} can be made of it ({reason}); expected the "
                "config.json of the training run"
            ) from error
        raise ServingError(
            f"the weights in {path} cannot be loaded: "
            + (checkpoint_files.weights(path, error) or f"{type(error).__name__}: {first_line(error)}; save them again")
        ) from error
    _refuse_other_weights(path, config, report)
    return model.eval()


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of token ids that the model knows."""
    try:
        return model.get_input_embeddings().num_embeddings
    except (NotImplementedError, AttributeError):  # some models have no such table, or hide it
        return model.config.vocab_size


def positions(model: PreTrainedModel) -> int:
    """Number of columns that the checkpoint has positions for."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        known = getattr(model.config, "max_position_embeddings", None) or 0
        return known if known > 0 else LONGEST_MAX_LENGTH  # XLNet says -1: relative positions have no limit
    # RoBERTa, its relatives and MPNet number positions from padding_idx + 1 on.
    skipped = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - skipped


def _attention(config: PretrainedConfig) -> str | None:
    return getattr(config, "_attn_implementation", None) or "sdpa"


def _no_model_of(config: PretrainedConfig) -> str | None:
    """The reason why the config makes no model even without weights; None if it makes one."""
    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # contradicting sizes raise the layers' own errors
        return f"{type(error).__name__}: {first_line(error)}"
    return None


def _custom_code(path: Path) -> str:
    return (
        f"{path} needs its own Python code (auto_map in config.json), which is never run here; expected an "
        "architecture that transformers itself knows"
    )


def _refuse_other_weights(path: Path, config: PretrainedConfig, report: dict) -> None:
    """Raises ServingError for tensors that only the weights or only the model has."""
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if mismatched := sorted(report["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        if 0 in there and (shards := checkpoint_files.sharded_training_state(path)):
            raise ServingError(f"the weights in {path} are empty: {shards}")
        raise ServingError(
            f"{name} has the shape {_shape(there)} in the weights of {path}, and config.json, which names "
            f"{config.num_labels} labels, asks for {_shape(wanted)} ({len(mismatched)} tensor(s) differ); use the "
            "config.json that the weights were saved with, or mend id2label"
        )
    if missing:
        heads = ", ".join(config.architectures or [])
        prefix = next((p for p in ("module.", "_orig_mod.", "model.") if f"{p}{missing[0]}" in unexpected), None)
        if prefix:
            raise ServingError(
                f"the names of the weights in {path} begin with {prefix!r}, which a wrapper around the model left; "
                "save the model inside it (model.module, model._orig_mod) with save_pretrained"
            )
        if key := checkpoint_files.nested_key(path):
            raise ServingError(
                f"pytorch_model.bin in {path} holds the weights under the key {key!r}; load that dictionary into the "
                "model (load_state_dict) and save it with save_pretrained"
            )
        if heads and "ForSequenceClassification" not in heads:
            raise ServingError(
                f"{path} holds {heads}, not a sequence classifier (its weights lack {len(missing)} tensor(s), such as "
                f"{missing[0]}); fine-tune it with AutoModelForSequenceClassification first"
            )
        raise ServingError(
            f"the weights in {path} lack {len(missing)} tensor(s), such as {missing[0]}; expected a complete "
            "fine-tuned classifier: save the checkpoint again"
        )
    if lost := [name for name in unexpected if _is_trained(name)]:
        raise ServingError(
            f"{len(lost)} tensor(s) of the weights in {path}, such as {lost[0]}, have no place in the model that "
            f"transformers makes of its config.json ({config.model_type}): it would not answer as trained; "
            "expected the config.json of the training run and an architecture that this transformers still has"
        )


def _is_trained(name: str) -> bool:
    """Whether a tensor without a place belongs to the layers or embeddings, and not to another task's head."""
    inside = any(part.isdigit() for part in name.split(".")) or ".embeddings." in name
    return inside and not RECOMPUTED.search(name)


def _shape(size: torch.Size | tuple[int, ...]) -> str:
    return str(list(size))
