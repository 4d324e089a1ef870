"""What plain Hugging Face answers: AutoTokenizer with truncation and the eager fp32 model, and nothing of ours."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class HuggingFace:
    """Answers of a checkpoint directory, remembered per text."""

    def __init__(self, path: Path, max_length: int):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
        self.max_length = max_length
        self.multi_label = self.model.config.problem_type == "multi_label_classification"
        self.known: dict[str | tuple[str, str], torch.Tensor] = {}

    def encode(self, text: str | tuple[str, str]) -> dict[str, list[int]]:
        """What the tokenizer gives for a text or a pair; lists, because it takes a single "" for no second text."""
        columns = [[text]] if isinstance(text, str) else [[one] for one in text]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        return {name: rows[0] for name, rows in encoded.items()}

    def probabilities(self, texts: list[str] | list[tuple[str, str]]) -> torch.Tensor:
        """(len(texts), labels) fp32; texts of the same number of tokens share a batch, so none is ever padded."""
        unknown = list(dict.fromkeys(text for text in texts if text not in self.known))
        encoded = [self.encode(text) for text in unknown]
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(encoded):
            by_length.setdefault(len(row["input_ids"]), []).append(index)
        with torch.inference_mode():
            for indexes in by_length.values():
                for start in range(0, len(indexes), 32):
                    some = indexes[start : start + 32]
                    inputs = {name: torch.tensor([encoded[index][name] for index in some]) for name in encoded[0]}
                    logits = self.model(**inputs).logits
                    rows = logits.sigmoid() if self.multi_label else logits.softmax(-1)
                    self.known.update((unknown[index], row) for index, row in zip(some, rows))
        return torch.stack([self.known[text] for text in texts])

    def class_ids(self, texts: list[str]) -> list[int]:
        return self.probabilities(texts).argmax(1).tolist()
