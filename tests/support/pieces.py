"""SentencePiece's file as older checkpoints carry it, in place of tokenizer.json; trained here."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import sentencepiece
import transformers
from transformers import PreTrainedTokenizerBase

from tests.support import checkpoints

# The file's name in a family, and the special pieces that its classes expect in it.
ALBERT = {
    "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]"],
    "user_defined_symbols": ["[MASK]"],
}  # fmt: skip
FAIRSEQ = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
DEBERTA = {
    "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]", "bos_piece": "[CLS]",
    "eos_piece": "[SEP]", "unk_piece": "[UNK]",
}  # fmt: skip
FILES = {
    "spiece.model": ALBERT,
    "sentencepiece.model": ALBERT,
    "sentencepiece.bpe.model": FAIRSEQ,
    "spm.model": DEBERTA,
    "tokenizer.model": {**FAIRSEQ, "model_type": "bpe"},
}


@functools.cache
def content(name: str) -> bytes:
    """What SentencePiece's trainer makes of the corpus, with the special pieces that a file of this name has."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(checkpoints.corpus()), model_writer=written, vocab_size=400, hard_vocab_limit=False,
        num_threads=1, minloglevel=2, **FILES[name],
    )  # fmt: skip
    return written.getvalue()


def write(name: str, family: str, directory: Path) -> PreTrainedTokenizerBase:
    """Write the file, and read what plain transformers makes of it for a family."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content(name))
    (directory / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    return transformers.AutoTokenizer.from_pretrained(directory)
