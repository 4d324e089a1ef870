"""Time the classifier file alone, beside Hugging Face, ONNX Runtime, OpenVINO and the machine's peak.

    python -m build_scripts bench

No server, no tokenizer: each runtime is loaded and called on the CPU, in a separate process (`runtimes`). The file runs
with the settings of the served one. Writes build/bench/report.md.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import torch

from build_scripts.benchmarks import bench_report, report, runtimes
from build_scripts.benchmarks.bench_report import EQUAL, Workload
from build_scripts.benchmarks.flask_service import export_onnx
from build_scripts.benchmarks.flops import classifier_flops
from build_scripts.convert.checkpoint import Checkpoint, load
from build_scripts.convert.export import export, graphs
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores, cpu_precisions
from build_scripts.core.paths import BUILD
from build_scripts.releases.default_model import demo_checkpoint
from build_scripts.releases.hub import resolve

OUTPUT = BUILD / "bench"
LONGEST_RANDOM = 500


def bench(model: str, max_length: int | None, seconds: float) -> Path:
    """Measure every workload, about `seconds` a runtime; returns the report. Raises ServingError."""
    directory = checkpoint_directory(model)
    checkpoint = load(directory, max_length)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    graph = graphs(checkpoint)[0]
    parts = graph.parts
    # fp16 weights exist for the packed graph only.
    precisions = [precision for precision in cpu_precisions() if precision != "fp16" or parts is not None]
    files = {precision: OUTPUT / f"model.{precision}.pt" for precision in precisions}
    for precision, file in files.items():
        export(checkpoint, graph, precision, file)
    kinds, missing = other_runtimes(checkpoint, directory, "bf16" in precisions)
    kinds |= {precision: (runtimes.FILE, file) for precision, file in files.items()}
    found, batches = {}, {}
    for name, lengths in workloads(checkpoint.max_length).items():
        equal = equal_lengths(lengths)
        flops = [classifier_flops(parts, one) if parts else None for one in (lengths, equal)]
        found[name] = Workload(name, lengths, *flops)
        batches[name] = random_batch(checkpoint, lengths)
        if len(set(lengths)) > 1:
            batches[f"{name}{EQUAL}"] = random_batch(checkpoint, equal)
    times = runtimes.measure(kinds, batches, OUTPUT, seconds)
    config = checkpoint.model.config
    facts = report.facts(
        model=f"{model or 'embedded default'}, {config.model_type}, {config.num_hidden_layers} layers, hidden "
        f"{config.hidden_size}",
        graph=str(graph),
        max_length=str(checkpoint.max_length),
        precision=", ".join(precisions),
        concurrency=f"one call at a time on {cores()} threads, no server",
        measured=f"up to {runtimes.ROUNDS * runtimes.MOST_CALLS} calls of each runtime, interleaved",
        **missing,
    )
    sections = bench_report.sections(list(found.values()), times, precisions)
    text = "\n\n".join(["# The classifier file alone", facts, *sections])
    print(text)
    return report.write(OUTPUT, text)


def other_runtimes(
    checkpoint: Checkpoint, directory: Path, bf16: bool
) -> tuple[dict[str, tuple[str, Path]], dict[str, str]]:
    """Kind and file of each runtime but ours, the baseline first; and why one is missing."""
    kinds, missing = {}, {}
    onnx = OUTPUT / "model.onnx"
    try:
        export_onnx(checkpoint, onnx)
        kinds["ONNX Runtime"] = (runtimes.ONNX, onnx)
        if importlib.util.find_spec("openvino"):
            kinds["OpenVINO"] = (runtimes.OPENVINO, onnx)
    except ServingError as error:
        missing["without_ONNX_Runtime"] = str(error)
    kinds |= {"HF trimmed": (runtimes.TRIMMED, directory), "HF padded": (runtimes.PADDED, directory)}
    kinds |= {"peak fp32": (runtimes.PRODUCT, OUTPUT)}
    if bf16:
        kinds |= {"HF trimmed bf16": (runtimes.TRIMMED_BF16, directory), "peak bf16": (runtimes.PRODUCT_BF16, OUTPUT)}
    return kinds, missing


def checkpoint_directory(model: str) -> Path:
    """model: a directory, a hub id, or "" for the embedded default."""
    return resolve(model) if model else demo_checkpoint()


def workloads(max_length: int) -> dict[str, list[int]]:
    """Token counts of each batch, by name."""
    normal = torch.randn(32, generator=torch.Generator().manual_seed(7)).tolist()
    batches = {
        "1 × 8": [8],
        "1 × 16": [16],
        "1 × 64": [64],
        f"1 × {max_length}": [max_length],
        "8 mixed": [12, 20, 9, 33, 15, 60, 18, 25],
        "32 lognormal": [int(min(LONGEST_RANDOM, max(4, math.exp(3.2 + 0.9 * z)))) for z in normal],
    }
    return {name: [min(length, max_length) for length in batch] for name, batch in batches.items()}


def equal_lengths(lengths: list[int]) -> list[int]:
    """The same number of texts and tokens, spread as evenly as whole tokens allow."""
    shortest, longer = divmod(sum(lengths), len(lengths))
    return [shortest + (index < longer) for index in range(len(lengths))]


def random_batch(checkpoint: Checkpoint, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens between the special ones; input_ids, attention_mask: (len(lengths), max_length) int64."""
    tokenizer, rows = checkpoint.tokenizer, checkpoint.model.get_input_embeddings().num_embeddings
    special = tokenizer("")["input_ids"]  # [CLS] and [SEP], or whatever this tokenizer adds
    shape = (len(lengths), checkpoint.max_length)
    ids = torch.randint(min(1000, rows // 2), rows, shape, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, length:], mask[row, :length] = tokenizer.pad_token_id, 1
        if special:
            ids[row, 0], ids[row, length - 1] = special[0], special[-1]
    return ids, mask
