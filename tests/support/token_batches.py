"""Batches of token ids for the exported file and for Hugging Face's eager fp32 model, and what both answer."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOGIT_ERROR = 1e-4
# Between two ways of batching the same texts.
SAME = 1e-5


def batch(subject, lengths: list[int], width: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random ids of the whole vocabulary, special tokens included: input_ids, attention_mask (texts, width) int64."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(len(subject.tokenizer), mask.shape, generator=generator)
    return torch.where(mask == 1, ids, subject.tokenizer.pad_token_id), mask


def eager(subject, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=input_ids, attention_mask=attention_mask).logits


def answers(file, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """class ids (batch,), probabilities (batch, labels)."""
    with torch.inference_mode():
        class_id, probabilities = file(input_ids, attention_mask)
    assert class_id.shape == (len(input_ids), 1)
    assert class_id.dtype == torch.int64
    assert probabilities.dtype == torch.float32
    return class_id[:, 0], probabilities


def assert_equals_hugging_face(subject, input_ids: Tensor, attention_mask: Tensor) -> None:
    expected = eager(subject, input_ids, attention_mask)
    with torch.inference_mode():
        logits = subject.exported.logits(input_ids, attention_mask)
    assert (logits - expected).abs().max() < MAX_LOGIT_ERROR
    class_ids, probabilities = answers(subject.exported, input_ids, attention_mask)
    assert class_ids.tolist() == expected.argmax(1).tolist()
    assert (probabilities - expected.softmax(1)).abs().max() < MAX_LOGIT_ERROR


def inputs(subject) -> tuple[Tensor, Tensor]:
    """Texts of 3, 20, 7, 6 and 6 tokens: more than one bucket, with and without padding inside."""
    mask = (torch.arange(24) < torch.tensor([3, 20, 7, 6, 6])[:, None]).long()
    ids = torch.randint(5, len(subject.tokenizer), mask.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(mask == 1, ids, subject.tokenizer.pad_token_id), mask
