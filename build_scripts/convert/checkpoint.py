"""Read a Hugging Face checkpoint, and refuse one that cannot be served before anything is built.

`weights` reads the model, `tokenizer` the tokenizer; this module checks that they belong together. Independent of
TorchScript.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from build_scripts.convert import tokenizer as tokenizers_
from build_scripts.convert import weights
from build_scripts.convert.activation import Activation, activation
from build_scripts.convert.documents import Documents, documents
from build_scripts.convert.error_guard import first_line
from build_scripts.convert.labels import read_labels
from build_scripts.core.errors import ServingError
from build_scripts.core.options import (
    DEFAULT_MAX_LENGTH,
    DEFAULT_STRIDE,
    LONGEST_MAX_LENGTH,
    SHORTEST_MAX_LENGTH,
)

# A text, or the two texts of a pair.
Text = str | tuple[str, str]
SAMPLE_TEXTS = ["a", "Plain words, and 中文 too \U0001f642.", "\x00\u0301 \t", "long " * 600]


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint. model: fp32, eval. labels: names in the order of class ids.

    pad_id: fills the columns after a text, and stands for a text without tokens.
    documents: how texts of more than max_length tokens are read whole; None truncates them.
    """

    path: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    activation: Activation
    max_length: int
    vocab_size: int
    pad_id: int
    documents: Documents | None = None

    @property
    def multi_label(self) -> bool:
        return self.activation == "sigmoid" and len(self.labels) > 1

    @property
    def score(self) -> str | None:
        """The activation of a checkpoint with one label, which gives a score; None for a classifier."""
        return self.activation if len(self.labels) == 1 else None

    @functools.cached_property
    def token_types(self) -> int:
        """Number of token types that both tokenizer and model use for a pair: 2 for BERT, 1 for most others."""
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:
            return 1
        given = self.tokenizer(["one"], ["two"]).get("token_type_ids", [[0]])[0]
        known = getattr(self.model.config, "type_vocab_size", None)  # 0: the model ignores the argument
        return max(1, min(1 + max(given, default=0), LONGEST_MAX_LENGTH if known is None else known))

    def encode(self, text: Text) -> list[dict[str, list[int]]]:
        """The output of Hugging Face's tokenizer for each window of a text or a pair.

        There is one window unless `documents` is set and the text is long; a pair is always truncated. A text without
        tokens becomes one pad_id. In lists of one: unbatched, the tokenizer ignores an empty second text.
        """
        columns = [[text]] if isinstance(text, str) else [[one] for one in text]
        windows, more = 1, {}
        if self.documents and isinstance(text, str):
            windows = self.documents.windows
            more = {"stride": self.documents.stride, "return_overflowing_tokens": True}
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, **more)
        if not encoded["input_ids"][0]:
            return [{"input_ids": [self.pad_id]}]
        encoded.pop("overflow_to_sample_mapping", None)
        found = range(min(windows, len(encoded["input_ids"])))
        return [{name: rows[row] for name, rows in encoded.items()} for row in found]

    def tokenize(self, texts: Sequence[Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask: (len(texts), max_length) int64, by Hugging Face's tokenizer, padded on the right.

        The mask is the token type plus one: 1, and 2 for the second text of a pair. Further windows of a text follow in
        its row, which may exceed max_length; each adds 2 to the mask.
        """
        rows = [self.encode(text) for text in texts]
        ids = [[token for window in row for token in window["input_ids"]] for row in rows]
        input_ids, mask = self.pad(ids, max(self.max_length, *map(len, ids)))
        for row, mask_row in zip(rows, mask):
            start = 0
            for number, window in enumerate(row):
                own = mask_row[start : start + len(window["input_ids"])]
                own += 2 * number
                if self.token_types > 1:
                    own += torch.tensor(window.get("token_type_ids", [0]))
                start += len(own)
        return input_ids, mask

    def pad(self, rows: list[list[int]], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids, attention_mask: (len(rows), width or the longest) int64; an empty row becomes one pad_id."""
        lengths = torch.tensor([max(1, len(row)) for row in rows])
        width = width or int(lengths.max())
        ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])
        return ids, (torch.arange(width) < lengths[:, None]).long()

    def logits(self, text: Text) -> torch.Tensor:
        """(num_labels,): plain Hugging Face on a text or a pair, unpadded, with every input the tokenizer gives.

        The windows of a document run one by one.
        """
        known = inspect.signature(self.model.forward).parameters
        found = []
        for window in self.encode(text):
            inputs = {name: torch.tensor([row]) for name, row in window.items() if name in known}
            found.append(self.model(**inputs).logits[0])
        return self.documents.pool(torch.stack(found), self.activation) if self.documents and found[1:] else found[0]


def load(
    path: Path,
    max_length: int | None = None,
    tokenizer_path: Path | None = None,
    pooling: str = "",
    stride: int = DEFAULT_STRIDE,
) -> Checkpoint:
    """Read and check a checkpoint directory. Raises ServingError with what was found and what was expected.

    tokenizer_path: the tokenizer's directory, if it is not the checkpoint's. pooling, stride: as in Documents.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = weights.load_config(path)
    labels = read_labels(config, path)
    model = weights.load_model(path, config)
    tokenizer = tokenizers_.load_tokenizer(tokenizer_path or path, config)
    rows = weights.embedding_rows(model)
    tokenizers_.check_vocabulary(tokenizer, rows, tokenizer_path or path)
    length = _max_length(max_length, weights.positions(model), tokenizer)
    checkpoint = Checkpoint(
        path=path,
        model=model,
        tokenizer=tokenizer,
        labels=labels,
        activation=activation(config, path),
        max_length=length,
        vocab_size=rows,
        pad_id=tokenizers_.pad_id(tokenizer, config, rows),
        documents=documents(pooling, stride, length, tokenizer.num_special_tokens_to_add(pair=False)),
    )
    _check_logits(checkpoint)
    return checkpoint


def longest(model: PreTrainedModel) -> int:
    """Largest MAX_LENGTH of the model."""
    return min(weights.positions(model), LONGEST_MAX_LENGTH)


def serving_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer for the server, with the truncation and padding of `Checkpoint.tokenize`.

    Padded to more columns than it truncates to, a row has room for several windows.
    """
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.backend_tokenizer.to_str())
    windows, stride = (checkpoint.documents.windows, checkpoint.documents.stride) if checkpoint.documents else (1, 0)
    direction = checkpoint.tokenizer.truncation_side
    tokenizer.enable_truncation(checkpoint.max_length, stride=stride, direction=direction)
    pad_token = tokenizer.id_to_token(checkpoint.pad_id) or "[PAD]"
    tokenizer.enable_padding(length=windows * checkpoint.max_length, pad_id=checkpoint.pad_id, pad_token=pad_token)
    return tokenizer


def _max_length(asked: int | None, positions: int, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = min(positions, LONGEST_MAX_LENGTH)
    whose = ""
    if asked is None:
        asked = min(limit, DEFAULT_MAX_LENGTH)
        if 0 < tokenizer.model_max_length < asked:  # 0, -1 and Infinity mean no limit
            asked, whose = int(tokenizer.model_max_length), ", the tokenizer's model_max_length"
    if not SHORTEST_MAX_LENGTH <= asked <= limit:
        raise ServingError(
            f"MAX_LENGTH={asked}{whose}; expected {SHORTEST_MAX_LENGTH} to {limit}: this checkpoint has {positions} "
            f"positions, and the server's limit is {LONGEST_MAX_LENGTH}"
        )
    return asked


def _check_logits(checkpoint: Checkpoint) -> None:
    with torch.inference_mode():
        for text in SAMPLE_TEXTS:
            try:
                logits = checkpoint.logits(text)
            except Exception as error:  # a forward raises errors of any type
                raise ServingError(
                    f"transformers itself cannot classify {text[:40]!r} with the checkpoint in {checkpoint.path} "
                    f"({type(error).__name__}: {first_line(error)}); expected a classifier of plain texts: mend "
                    "config.json or the tokenizer's files"
                ) from error
            if logits.shape != (len(checkpoint.labels),):
                raise ServingError(
                    f"the model in {checkpoint.path} gives logits of shape {tuple(logits.shape)} for a text and has "
                    f"{len(checkpoint.labels)} labels; expected one number per label"
                )
            if not torch.isfinite(logits).all():
                raise ServingError(
                    f"the model in {checkpoint.path} gives logits that are not finite numbers (NaN or infinity); "
                    "its weights are damaged or its training diverged"
                )
