"""Time the classifier file alone: against the machine's peak, Hugging Face and other runtimes.

    python -m build_scripts bench

No server, no tokenizer: `torch.jit.load` and a call, as the server's backend does it, on the CPU. Writes
build/bench/report.md.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from build_scripts.benchmarks import report, runtimes
from build_scripts.benchmarks.bench_report import HUGGING_FACE, PEAK_SHAPE, PRECISIONS, Measured, sections
from build_scripts.benchmarks.flops import classifier_flops
from build_scripts.benchmarks.timing import MOST_CALLS, ROUNDS, interleaved
from build_scripts.convert.checkpoint import Checkpoint, load
from build_scripts.convert.export import DTYPES, export, graphs
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores, cpu_precisions
from build_scripts.core.paths import BUILD
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.releases.default_model import demo_checkpoint
from build_scripts.releases.hub import resolve

OUTPUT = BUILD / "bench"
LONGEST_RANDOM = 500


def bench(model: str, max_length: int | None, seconds: float) -> Path:
    """Measure every workload, at most about `seconds` a variant; returns the report. Raises ServingError."""
    checkpoint = load(checkpoint_directory(model), max_length)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(cores())
    files = {precision: OUTPUT / f"model.{precision}.pt" for precision in PRECISIONS}
    graph = graphs(checkpoint)[0]
    for precision, file in files.items():
        export(checkpoint, graph, precision, file)
    loaded = {precision: torch.jit.load(str(file)).eval() for precision, file in files.items()}
    reduced = copy.deepcopy(checkpoint.model).bfloat16()
    parts = graph.parts
    measured = []
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for name, lengths in workloads(checkpoint.max_length).items():
            variants = variants_of(checkpoint, loaded, reduced, lengths)
            flops = [classifier_flops(parts, one) if parts else None for one in (lengths, equal_lengths(lengths))]
            measured.append(Measured(name, lengths, interleaved(variants, seconds, name), *flops))
        if parts is not None:  # for no other graph is there a file with fp16 weights
            files["fp16"] = OUTPUT / "model.fp16.pt"
            export(checkpoint, graph, "fp16", files["fp16"])
        native = {precision: files[precision] for precision in cpu_precisions() if precision in files}
    batches = {one.name: random_batch(checkpoint, one.lengths) for one in measured}
    try:
        beside = runtimes.section(runtimes.measure(native, checkpoint, batches, OUTPUT), batches)
    except ServingError as error:  # what was measured by now is not lost
        beside = ["## Beside other runtimes", f"Not measured: {error}"]
    config = checkpoint.model.config
    emulated = [precision for precision in PRECISIONS if precision not in cpu_precisions()]
    facts = report.facts(
        model=f"{model or 'embedded default'}, {config.model_type}, {config.num_hidden_layers} layers, hidden "
        f"{config.hidden_size}",
        graph=str(graph),
        max_length=str(checkpoint.max_length),
        precision="fp32 and bf16" + (f"; this CPU emulates {', '.join(emulated)}" if emulated else ""),
        concurrency=f"one call at a time on {torch.get_num_threads()} threads, no server",
        measured=f"up to {ROUNDS * MOST_CALLS} calls of each; all variants of a batch take turns",
    )
    text = "\n\n".join(["# The classifier file alone", facts, *sections(measured, checkpoint.max_length), *beside])
    print(text)
    return report.write(OUTPUT, text)


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
    """As many texts and tokens, spread as evenly as whole tokens allow."""
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


def variants_of(
    checkpoint: Checkpoint, loaded: dict[str, torch.nn.Module], reduced: torch.nn.Module, lengths: list[int]
) -> dict[str, Callable[[], object]]:
    """Everything that takes turns on one workload, by name. loaded: the files, by precision; reduced: HF in bf16."""
    padded = random_batch(checkpoint, lengths)
    trimmed = tuple(tensor[:, : max(lengths)].contiguous() for tensor in padded)
    variants: dict[str, Callable[[], object]] = {}
    for precision, classifier in loaded.items():
        variants[precision] = partial(classifier, *padded)
        variants[f"peak {precision}"] = large_product(DTYPES[precision])
    for name, precision in HUGGING_FACE.items():
        model = reduced if precision == "bf16" else checkpoint.model
        ids, mask = padded if "padded" in name else trimmed
        variants[name] = partial(model, input_ids=ids, attention_mask=mask)
    if len(set(lengths)) > 1:
        even = random_batch(checkpoint, equal_lengths(lengths))
        variants |= {f"{precision} equal": partial(classifier, *even) for precision, classifier in loaded.items()}
    return variants


def large_product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """The matrix product of the classifier's linear layers, at a size that keeps every core busy."""
    rows, columns, inner = PEAK_SHAPE
    x = torch.randn(rows, inner).to(dtype)
    layer = PackedLinear(torch.randn(columns, inner), torch.zeros(columns), dtype=dtype)
    return lambda: layer(x)
