"""Turn a checkpoint into the TorchScript file that Triton runs. Chooses the graph, not the precision."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import nn

from build_scripts.build.checkpoint import Checkpoint
from build_scripts.graph.architectures import BertParts, bert_parts
from build_scripts.graph.classifier import TextClassifier
from build_scripts.graph.packed_bert import PackedBert
from build_scripts.graph.traced import device_constants, traced_logits
from build_scripts.settings import ServingError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKED, TRACED = "packed (padding only inside attention)", "traced (padded to the longest text of a batch)"


def export(checkpoint: Checkpoint, precision: str, path: Path) -> str:
    """Write the TorchScript file and return the name of its graph, PACKED or TRACED.

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
    return TRACED if parts is None else PACKED


def _classifier(checkpoint: Checkpoint, parts: BertParts | None, dtype: torch.dtype) -> TextClassifier:
    if parts is None:
        example = checkpoint.tokenizer(["one", "a longer text"], padding=True, return_tensors="pt")
        logits: nn.Module = traced_logits(checkpoint.model, (example["input_ids"], example["attention_mask"]), dtype)
    else:
        logits = PackedBert(parts, dtype)
    return TextClassifier(
        logits,
        vocab_size=checkpoint.model.get_input_embeddings().num_embeddings,
        max_length=checkpoint.max_length,
        multi_label=checkpoint.multi_label,
    ).eval()
