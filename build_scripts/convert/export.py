"""The graphs that a checkpoint can become, and the TorchScript file of each."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.convert.families import encoder_parts
from build_scripts.convert.traced import BATCH_MODES, BatchMode, device_constants, traced_logits
from build_scripts.core.errors import ServingError
from build_scripts.graph.classifier import TextClassifier
from build_scripts.graph.documents import DocumentClassifier
from build_scripts.graph.packed_encoder import PackedEncoder
from build_scripts.graph.parts import EncoderParts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Graph:
    """Computation of the logits: the packed graph of `parts` or, without parts, the traced forward in `batch_mode`."""

    parts: EncoderParts | None = None
    batch_mode: BatchMode = BATCH_MODES[0]

    @property
    def packed(self) -> bool:
        return self.parts is not None

    def __str__(self) -> str:
        return "packed (padding only inside attention)" if self.packed else f"traced ({self.batch_mode})"


def graphs(checkpoint: Checkpoint) -> list[Graph]:
    """The graphs to try, the fastest first. Raises ServingError for documents that no graph of the checkpoint reads."""
    parts = encoder_parts(checkpoint.model, checkpoint.token_types)
    if checkpoint.documents:
        if parts is None:
            raise ServingError(
                f"DOCUMENTS: this {checkpoint.model.config.model_type} is traced, and only the padding-free graph "
                "reads windows; build without DOCUMENTS"
            )
        return [Graph(parts)]
    return ([] if parts is None else [Graph(parts)]) + [Graph(batch_mode=mode) for mode in BATCH_MODES]


def model_file(directory: Path, precision: str) -> Path:
    return directory / f"model.{precision}.pt"


def export(checkpoint: Checkpoint, graph: Graph, precision: str, path: Path) -> None:
    """Write the TorchScript file. Raises ServingError if Hugging Face's forward cannot be traced."""
    with warnings.catch_warnings():
        # torch 2.13 calls TorchScript deprecated; it is the format that Triton's pytorch backend reads.
        warnings.simplefilter("ignore")
        classifier = torch.jit.script(_classifier(checkpoint, graph, DTYPES[precision]))
    # Saved through memory, so that a full disk raises OSError and none of torch's own errors.
    buffer = io.BytesIO()
    torch.jit.save(classifier, buffer)
    path.write_bytes(buffer.getbuffer())
    if found := device_constants(classifier):
        raise ServingError(
            f"{checkpoint.model.config.model_type}: the graph names a device ({found[0]}); this architecture cannot be "
            "served"
        )


def _classifier(checkpoint: Checkpoint, graph: Graph, dtype: torch.dtype) -> nn.Module:
    if graph.parts is not None:
        logits: nn.Module = PackedEncoder(graph.parts, dtype)
    else:
        logits = traced_logits(
            checkpoint.model,
            _example(checkpoint, graph.batch_mode),
            dtype,
            graph.batch_mode,
            checkpoint.pad_id,
            checkpoint.token_types,
        )
    classifier = TextClassifier(
        logits,
        vocab_size=checkpoint.vocab_size,
        max_length=checkpoint.max_length,
        activation=checkpoint.activation,
    )
    if found := checkpoint.documents:
        return DocumentClassifier(classifier, pooling=found.pooling, max_windows=found.windows).eval()
    return classifier.eval()


def _example(checkpoint: Checkpoint, mode: BatchMode) -> tuple[torch.Tensor, torch.Tensor]:
    """Example input_ids and attention_mask, (2, width) int64: a short text, then a longer one."""
    texts = ["one", "a longer text"]
    if mode.full_width:
        return checkpoint.tokenize(texts)
    # Not truncated: a small max_length could make them equally long.
    return checkpoint.pad(checkpoint.tokenizer(texts)["input_ids"])
