"""Read the tokenizer of a checkpoint, and refuse one that the server cannot use or that belongs to another model."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from build_scripts.convert import checkpoint_files, sentencepiece_check
from build_scripts.convert.error_guard import first_line
from build_scripts.core.errors import ServingError

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# The version of the format that the installed tokenizers reads; any other is an error.
FORMAT_VERSION = "1.0"
# Minimum tokens per row of the embedding; below it the tokenizer was read from files of another kind.
MIN_VOCABULARY_SHARE = 0.1


def load_tokenizer(path: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The fast tokenizer, padding on the right. config: the model's. Raises ServingError."""
    # Without a vocabulary AutoTokenizer makes an empty tokenizer, which knows no word.
    files = [file.name for pattern in VOCABULARY_FILES for file in sorted(path.glob(pattern))]
    if not files:
        raise ServingError(
            f"{path} has no tokenizer (none of {', '.join(VOCABULARY_FILES)}); expected tokenizer.json: "
            f"{checkpoint_files.tokenizer_beside(path)}"
        )
    if pointer := checkpoint_files.lfs_pointer(path, files):
        raise ServingError(f"the tokenizer in {path} cannot be loaded: {pointer}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=config, trust_remote_code=False)
    except ImportError as error:
        raise ServingError(
            f"the tokenizer in {path} needs more than this project installs ({first_line(error)}); expected one that "
            "tokenizer.json alone describes: fine-tune a model whose tokenizer it does"
        ) from error
    except Exception as error:  # errors of any type
        if mark := checkpoint_files.byte_order_mark(path):
            raise ServingError(f"the tokenizer in {path} cannot be loaded: {mark}") from error
        reason = sentencepiece_check.damaged(path) or f"{first_line(error)}{_versions(config, error)}"
        raise ServingError(
            f"{path} has no usable tokenizer (from {', '.join(files)}: {reason}); expected tokenizer.json: "
            f"{checkpoint_files.tokenizer_beside(path)}"
        ) from error
    if not tokenizer.is_fast:
        raise ServingError(
            f"{path} has no fast tokenizer (found {type(tokenizer).__name__}); expected tokenizer.json, which "
            f"transformers cannot make of its {', '.join(files)}: fine-tune a model whose tokenizer has one"
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ServingError(
            f"model_max_length in {path}/tokenizer_config.json is {tokenizer.model_max_length!r}; expected a number, "
            "or no such line"
        )
    if tokenizer.split_special_tokens:
        raise ServingError(
            f"the tokenizer in {path} has split_special_tokens set, which tokenizer.json cannot express; "
            "expected it unset: save the tokenizer again without it"
        )
    sentencepiece_check.refuse_other_tokens(tokenizer, path)
    tokenizer.padding_side = "right"  # as the server pads; the mask hides padding on either side
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, path: Path) -> None:
    """Raises ServingError if the tokenizer cannot belong to a model with `rows` rows in its embedding."""
    vocabulary = tokenizer.get_vocab()
    ordinary = len(set(vocabulary.values()) - set(tokenizer.added_tokens_decoder))
    if ordinary < 2 or len(vocabulary) < MIN_VOCABULARY_SHARE * rows:
        raise ServingError(
            f"the tokenizer in {path} ({type(tokenizer).__name__}) knows {len(vocabulary)} tokens, {ordinary} of them "
            f"not special, and the model's embedding has {rows} rows; its files are of another kind of tokenizer "
            f"or incomplete: {_what_to_do(tokenizer, path)}"
        )
    too_many = {index: token for token, index in vocabulary.items() if index >= rows}
    written = sorted(index for index in too_many if _can_be_written(tokenizer, index, too_many[index]))
    if written:
        raise ServingError(
            f"the tokenizer in {path} has token ids up to {max(too_many)}, the model's embedding only {rows} rows, and "
            f"a text can produce {len(written)} of them, such as {too_many[written[0]]!r}; they come from different "
            "training runs: use the tokenizer that the model was trained with"
        )


def pad_id(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, rows: int) -> int:
    """The padding id: the model's, because some models search for it, else the tokenizer's, else 0."""
    for candidate in (getattr(config, "pad_token_id", None), tokenizer.pad_token_id):
        if isinstance(candidate, int) and 0 <= candidate < rows:
            return candidate
    return 0


def _what_to_do(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """The next step for a directory that gave an empty tokenizer."""
    advice = checkpoint_files.tokenizer_beside(path)
    looked_for = tokenizer.vocab_files_names.get("vocab_file", "tokenizer.json")
    found = [file.name for file in sentencepiece_check.files(path)]
    if not found or looked_for in found or (path / "tokenizer.json").is_file():
        bad = sentencepiece_check.damaged(path)
        return f"{bad}: {advice}" if bad else advice
    return (
        f"it reads {looked_for} and not {found[0]}; rename the file if it is that one, or name the tokenizer's class "
        f"in tokenizer_class of tokenizer_config.json, or {advice}"
    )


def _versions(config: PretrainedConfig, error: Exception) -> str:
    """The versions on both sides, if tokenizer.json may be newer than the installed library."""
    if not any(sign in str(error) for sign in ("Unknown tokenizer version", "did not match any variant")):
        return ""
    written = f"transformers {config.transformers_version}" if config.transformers_version else "an unknown version"
    return (
        f": the checkpoint was written by {written}; tokenizers {version('tokenizers')} and transformers "
        f"{version('transformers')} read format {FORMAT_VERSION}"
    )


def _can_be_written(tokenizer: PreTrainedTokenizerBase, index: int, token: str) -> bool:
    """Whether the token's own text produces it: at the start of a text, after a blank or in a word."""
    text = tokenizer.convert_tokens_to_string([token])
    tries = [token, text, f" {text}", f"a {text} a", f"a{text}", f"a{token.removeprefix('##')}"]
    return any(index in ids for ids in tokenizer(tries)["input_ids"])
