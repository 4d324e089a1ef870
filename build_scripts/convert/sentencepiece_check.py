"""Where tokenizer.json is missing, transformers makes a fast tokenizer of SentencePiece's file: is it the same one?

Some classes of transformers 5 lose the blank before the first word or the special tokens on this way. The model was
trained with what SentencePiece itself says.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerBase

from build_scripts.core.errors import ServingError

# So many words are compared. Two ways to split one may be equally probable, and then the last bit decides.
WORDS = 50
LEAST_SHARE_ALIKE = 0.5


def refuse_another(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Raises ServingError if the tokenizer was made of SentencePiece's file and does not do what the file says."""
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    if (path / "tokenizer.json").is_file() or file.suffix != ".model":
        return
    model = _read(file)
    if model is None:  # no file of SentencePiece: some tokenizers of other kinds are called .model, too
        return
    words = _words(model)
    alike = sum(_split(model, word) == _tokens(tokenizer, word) for word in words)
    loses = None
    if alike < LEAST_SHARE_ALIKE * len(words):
        example = next(word for word in words if _split(model, word) != _tokens(tokenizer, word))
        loses = f"splits {example!r} into {_tokens(tokenizer, example)}, and the file says {_split(model, example)}"
    elif tokenizer.cls_token is not None and not tokenizer("")["input_ids"]:
        loses = f"adds no special token to a text, though it has {tokenizer.cls_token}"
    if loses:
        raise ServingError(
            f"the {type(tokenizer).__name__} that this transformers makes of {file} {loses}; expected tokenizer.json: "
            "load the tokenizer with the version of transformers that the model was trained with, and save it beside "
            "the model with save_pretrained"
        )


def damaged(path: Path) -> str | None:
    """Which file is none of SentencePiece's, though its name says so; None if all are, or none is there."""
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
    """Pieces of its own vocabulary that no normalizer changes: small letters without accents, or no cases at all."""
    normal = [index for index in range(len(model)) if not (model.is_control(index) or model.is_unknown(index))]
    pieces = [model.id_to_piece(index).lstrip("▁") for index in normal]
    words = [piece for piece in pieces if piece.isalpha() and unicodedata.normalize("NFKD", piece.lower()) == piece]
    return words[:: max(1, len(words) // WORDS)]


def _split(model: SentencePieceProcessor, text: str) -> list[str]:
    return [model.id_to_piece(index) for index in model.encode(text)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
