"""Load a Hugging Face checkpoint and refuse, with a reason, what could not be served.

Everything that is wrong with a checkpoint is found here, before anything is written. Knows nothing of TorchScript.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from build_scripts.settings import LONGEST_MAX_LENGTH, SHORTEST_MAX_LENGTH, ServingError

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
SAMPLE_TEXTS = ["a", "Plain words, and 中文 too \U0001f642.", "\x00\u0301 \t", "long " * 600]


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. model: fp32, eval. labels: names in the order of class ids."""

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    multi_label: bool
    max_length: int

    @property
    def token_types(self) -> int:
        """2 if the tokenizer tells a pair's second text from its first and the model makes a difference, else 1."""
        told = "token_type_ids" in self.tokenizer.model_input_names
        heard = "token_type_ids" in inspect.signature(self.model.forward).parameters
        known = getattr(self.model.config, "type_vocab_size", None) or 1
        return 2 if told and heard and known > 1 else 1

    def tokenize(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask: (len(texts), max_length) int64, padded on the right, by Hugging Face."""
        batch = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding="max_length", return_tensors="pt"
        )
        return batch["input_ids"], batch["attention_mask"]


def resolve(model: str) -> Path:
    """The directory of a checkpoint: itself, or a hub id's local copy, downloaded if need be."""
    try:
        path = Path(model).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a user that is not there
        raise ServingError(f"MODEL={model}: {error}; expected a Hugging Face checkpoint directory") from error
    if path.is_dir():
        return path
    if exists or model.startswith((".", "/", "~")) or model.count("/") > 1:
        found = "a file" if exists else "nothing there"
        raise ServingError(f"MODEL={model}: {found}; expected a Hugging Face checkpoint directory, or a hub id")
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.txt", "*.model", *WEIGHT_FILES]))
    except (OSError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ServingError(
            f"MODEL={model}: no such directory here, and the hub gave none ({reason}); "
            "check the name, the network, or log in with `hf auth login`"
        ) from error


def load(path: Path, max_length: int | None = None) -> Checkpoint:
    """Read and check a checkpoint directory. Raises ServingError naming what was found and what was expected."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = _load_config(path)
    model = _load_model(path)
    tokenizer = _load_tokenizer(path)
    positions = _positions(model)
    checkpoint = Checkpoint(
        path=path,
        model=model,
        tokenizer=tokenizer,
        labels=[str(config.id2label[index]) for index in range(config.num_labels)],
        multi_label=config.problem_type == "multi_label_classification",
        max_length=_max_length(max_length, positions, tokenizer),
    )
    _check_labels(checkpoint)
    _check_vocabulary(checkpoint)
    _check_logits(checkpoint)
    return checkpoint


def serving_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that travels to the server, truncation and padding set as `Checkpoint.tokenize` does it."""
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(checkpoint.max_length, direction=checkpoint.tokenizer.truncation_side)
    tokenizer.enable_padding(
        length=checkpoint.max_length,
        pad_id=checkpoint.tokenizer.pad_token_id,
        pad_token=checkpoint.tokenizer.pad_token,
    )
    return tokenizer


def _load_config(path: Path):
    if not any(path.iterdir()):
        raise ServingError(f"{path} is empty; expected config.json, the weights and tokenizer files")
    if not (path / "config.json").is_file():
        raise ServingError(f"{path} has no config.json; expected the directory that save_pretrained wrote")
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # what a damaged file raises depends on the damage; all mean the same to the user
        raise ServingError(
            f"{path}/config.json cannot be used: {_first_line(error)}; expected what save_pretrained wrote"
        ) from error
    heads = config.architectures or []
    if heads and not any(name.endswith("ForSequenceClassification") for name in heads):
        raise ServingError(
            f"{path} holds {', '.join(heads)}, not a sequence classifier; "
            "fine-tune it with AutoModelForSequenceClassification first"
        )
    if config.problem_type == "regression" or config.num_labels < 2:
        raise ServingError(
            f"{path} has {config.num_labels} label(s) and problem type {config.problem_type or 'unset'}: a regression "
            "has no class ids; expected a single-label or multi-label classifier with at least 2 labels"
        )
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise ServingError(
            f"id2label in {path}/config.json has the ids {sorted(config.id2label)}; expected 0 to "
            f"{config.num_labels - 1}, one for each class id: mend id2label"
        )
    return config


def _load_model(path: Path) -> PreTrainedModel:
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # the readers of weights raise types of their own; all mean the same to the user
        raise ServingError(
            f"the weights in {path} cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
            "copy or save the checkpoint again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ServingError(
            f"the weights in {path} lack {len(missing)} tensor(s), such as {missing[0]}; expected a complete "
            "fine-tuned classifier: save the checkpoint again"
        )
    return model.eval()


def _load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    # Without a vocabulary AutoTokenizer makes an empty one, to which every word is unknown.
    if not any(file for pattern in VOCABULARY_FILES for file in path.glob(pattern)):
        raise ServingError(
            f"{path} has no tokenizer (none of {', '.join(VOCABULARY_FILES)}); expected tokenizer.json: "
            "save the tokenizer beside the model with tokenizer.save_pretrained"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # as for the weights: one meaning, many types
        raise ServingError(
            f"{path} has no usable tokenizer ({_first_line(error)}); expected tokenizer.json: "
            "save the tokenizer beside the model with tokenizer.save_pretrained"
        ) from error
    if not tokenizer.is_fast:
        raise ServingError(
            f"{path} has no fast tokenizer (found {type(tokenizer).__name__}); expected tokenizer.json: "
            "convert it with AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained"
        )
    if tokenizer.pad_token_id is None:
        raise ServingError(f"the tokenizer in {path} has no padding token; set tokenizer.pad_token and save it again")
    if tokenizer.split_special_tokens:
        raise ServingError(
            f"the tokenizer in {path} has split_special_tokens set, which tokenizer.json cannot express; "
            "expected it unset: save the tokenizer again without it"
        )
    tokenizer.padding_side = "right"  # as the server pads; a mask hides the padding, so the side means nothing else
    return tokenizer


def _positions(model: PreTrainedModel) -> int:
    """How many columns the checkpoint has positions for."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if table is None:
        known = getattr(model.config, "max_position_embeddings", None) or 0
        return known if known > 0 else LONGEST_MAX_LENGTH  # XLNet says -1: relative positions have no limit
    # RoBERTa and its kin number positions from padding_idx + 1 on, MPNet too.
    skipped = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - skipped


def _max_length(asked: int | None, positions: int, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = min(positions, LONGEST_MAX_LENGTH)
    if asked is None:
        asked = min(limit, int(tokenizer.model_max_length))
    if not SHORTEST_MAX_LENGTH <= asked <= limit:
        raise ServingError(
            f"MAX_LENGTH={asked}; expected {SHORTEST_MAX_LENGTH} to {limit}: this checkpoint has {positions} "
            f"positions, and {LONGEST_MAX_LENGTH} is the most that is served"
        )
    return asked


def _check_labels(checkpoint: Checkpoint) -> None:
    for index, label in enumerate(checkpoint.labels):
        if not label.strip() or len(label.splitlines()) != 1:
            raise ServingError(
                f"label {index} in {checkpoint.path}/config.json is {label!r}; expected one "
                "non-empty line: mend id2label"
            )


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    highest = max(checkpoint.tokenizer.get_vocab().values())
    rows = checkpoint.model.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise ServingError(
            f"the tokenizer in {checkpoint.path} has token ids up to {highest}, the model's embedding only {rows} "
            "rows; they are not of one training run: use the tokenizer that the model was trained with"
        )


def _check_logits(checkpoint: Checkpoint) -> None:
    with torch.inference_mode():
        input_ids, attention_mask = checkpoint.tokenize(SAMPLE_TEXTS)
        try:
            logits = checkpoint.model(input_ids=input_ids, attention_mask=attention_mask).logits
        except Exception as error:  # a forward may raise anything; all mean that nobody can be answered
            raise ServingError(
                f"the model in {checkpoint.path} cannot classify {len(SAMPLE_TEXTS)} texts at once "
                f"({_first_line(error)}); expected one that takes padded batches: mend config.json"
            ) from error
    if not torch.isfinite(logits).all():
        raise ServingError(
            f"the model in {checkpoint.path} gives logits that are not finite numbers (NaN or infinity); "
            "its weights are damaged or its training diverged"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
