"""Turn a checkpoint into the TorchScript file that Triton runs. Chooses the graph, not the precision."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from build_scripts.convert.architectures import bert_parts
from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.traced import PADDED as PADDED_WAY
from build_scripts.convert.traced import device_constants, traced_logits
from build_scripts.core.errors import ServingError
from build_scripts.graph.classifier import TextClassifier
from build_scripts.graph.packed_bert import PackedBert
from build_scripts.graph.parts import BertParts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKED, TRACED = "packed (padding only inside attention)", str(PADDED_WAY)


def export(checkpoint: Checkpoint, precision: str, path: Path) -> str:
    """Write the TorchScript file and return the name of its graph: PACKED, or the checkpoint's way of a traced one.

    Raises ServingError if Hugging Face's forward cannot be traced.
    """
    parts = bert_parts(checkpoint.model, checkpoint.token_types)
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated; it is the format that Triton's pytorch backend reads.
        warnings.simplefilter("ignore")
        classifier = torch.jit.script(_classifier(checkpoint, parts, DTYPES[precision]))
    # Through memory, so that a full disk is an OSError like any other and not one of torch's own.
    buffer = io.BytesIO()
    torch.jit.save(classifier, buffer)
    path.write_bytes(buffer.getbuffer())
    if found := device_constants(classifier):
        raise ServingError(
            f"{checkpoint.model.config.model_type}: the graph names a device ({found[0]}); this architecture cannot be "
            "served"
        )
    return str(checkpoint.way) if parts is None else PACKED


def _classifier(checkpoint: Checkpoint, parts: BertParts | None, dtype: torch.dtype) -> TextClassifier:
    if parts is None:
        example = _example(checkpoint)
        logits: nn.Module = traced_logits(
            checkpoint.model, example, dtype, checkpoint.way, checkpoint.pad_id, checkpoint.token_types
        )
    else:
        logits = PackedBert(parts, dtype)
    return TextClassifier(
        logits,
        vocab_size=checkpoint.vocab_size,
        max_length=checkpoint.max_length,
        multi_label=checkpoint.multi_label,
    ).eval()


def _example(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids, attention_mask: (2, width) int64 of two texts, the longer one second."""
    texts = ["one", "a longer text"]
    if checkpoint.way.full_width:
        return checkpoint.tokenize(texts)
    # Not cut at a small max_length, which could make them equally long.
    return checkpoint.pad(checkpoint.tokenizer(texts)["input_ids"])
