"""Compare a fast tokenizer that transformers converted from a SentencePiece file with SentencePiece itself.

Without tokenizer.json, transformers 5 converts that file. Some of its classes then drop the space before the first
word, or the special tokens, and the model reads other tokens than in training.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerBase

from build_scripts.core.errors import ServingError

# Number of words to compare.
WORDS = 50
# Minimum share of words with equal tokens. Two splits of a word may be equally probable; then rounding decides.
MIN_SHARE_EQUAL = 0.5


def refuse_other_tokens(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Raise ServingError if the tokenizer was converted from a SentencePiece file and its tokens differ."""
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    if (path / "tokenizer.json").is_file() or file.suffix != ".model":
        return
    model = _read(file)
    if model is None:  # other kinds of tokenizers use the suffix .model, too
        return
    words = _words(model)
    equal = sum(_split(model, word) == _tokens(tokenizer, word) for word in words)
    fault = None
    if equal < MIN_SHARE_EQUAL * len(words):
        example = next(word for word in words if _split(model, word) != _tokens(tokenizer, word))
        fault = f"splits {example!r} into {_tokens(tokenizer, example)}, SentencePiece into {_split(model, example)}"
    elif tokenizer.cls_token is not None and not tokenizer("")["input_ids"]:
        fault = f"adds no special token to a text, though it has {tokenizer.cls_token}"
    if fault:
        raise ServingError(
            f"transformers converts {file} to a {type(tokenizer).__name__} that {fault}; expected tokenizer.json: load "
            "the tokenizer with the version of transformers used in training, and save it beside the model with "
            "save_pretrained"
        )


def damaged(path: Path) -> str | None:
    """A message that names the first *.model file that SentencePiece cannot read; None if it reads all."""
    return next((f"{file.name} is no SentencePiece model" for file in files(path) if _read(file) is None), None)


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*.model") if file.is_file())


def _read(file: Path) -> SentencePieceProcessor | None:
    try:
        model = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
        return None
    return model if len(model) else None


def _words(model: SentencePieceProcessor) -> list[str]:
    """Words of the vocabulary that no normalizer changes: lower case without accents, or scripts without case."""
    normal = [index for index in range(len(model)) if not (model.is_control(index) or model.is_unknown(index))]
    pieces = [model.id_to_piece(index).lstrip("▁") for index in normal]
    words = [piece for piece in pieces if piece.isalpha() and unicodedata.normalize("NFKD", piece.lower()) == piece]
    return words[:: max(1, len(words) // WORDS)]


def _split(model: SentencePieceProcessor, text: str) -> list[str]:
    return [model.id_to_piece(index) for index in model.encode(text)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
