"""Choose the precision of a classifier file: the fastest that this machine runs natively and that answers like fp32."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from build_scripts.convert.checkpoint import Checkpoint, Text
from build_scripts.convert.export import Graph, export, model_file
from build_scripts.convert.parity import (
    NEAR_TIE,
    PROBABILITY_LIMITS,
    Parity,
    Reference,
    differences,
    measure,
    moved,
    passes,
)
from build_scripts.convert.unseen import Unseen, unseen
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cpu_precisions

TIMED_BATCHES = (1, 8)
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Attempt:
    """One precision, exported and measured. milliseconds: see `timings`. unseen: None if fp32 was asked for."""

    precision: str
    parity: Parity
    milliseconds: float
    passed: bool
    unseen: Unseen | None

    @property
    def eligible_for_auto(self) -> bool:
        """fp32 needs no bound: it passed a limit that is 200 times as strict."""
        return self.passed and (self.precision == "fp32" or self.unseen is None or self.unseen.within_promise)


@dataclass(frozen=True)
class Choice:
    """The chosen attempt and all attempts, as printed and stored."""

    chosen: Attempt
    attempts: list[Attempt]
    device: str

    def as_dict(self) -> dict:
        return {
            "precision": self.chosen.precision,
            "device": self.device,
            "unseen": self.chosen.unseen and asdict(self.chosen.unseen),
            "attempts": [asdict(attempt) for attempt in self.attempts],
        }


def choose_precision(
    checkpoint: Checkpoint,
    graph: Graph,
    asked: str,
    expected: Reference,
    held_out: Reference | None,
    directory: Path,
) -> Choice:
    """Export the graph in each precision, measure, choose. `directory` holds the fp32 file already.

    held_out: texts that no gate has seen; their only use is the bounds, and with these the choice of `auto`.

    Raises ServingError if fp32 or the precision that was asked for does not answer like the reference.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # fp32 comes first: it distinguishes a wrong graph from a precision that rounds.
    names = native_precisions(device, graph) if asked == "auto" else list(dict.fromkeys(["fp32", asked]))
    for name in names[1:]:
        export(checkpoint, graph, name, model_file(directory, name))
    files = {name: model_file(directory, name) for name in names}
    parities = {name: measure(file, checkpoint, expected, device) for name, file in files.items()}
    times = timings(files, checkpoint, expected.texts, device)
    bounds = {name: _bounds(files[name], checkpoint, held_out, name, device) for name in names}
    attempts = [
        Attempt(name, parities[name], times[name], passes(parities[name], name), bounds[name]) for name in names
    ]
    for attempt in attempts:
        if attempt.precision in ("fp32", asked) and not attempt.passed:
            raise ServingError(_refusal(checkpoint, attempt))
    eligible = [
        attempt
        for attempt in attempts
        if (attempt.eligible_for_auto if asked == "auto" else attempt.precision == asked)
    ]
    return Choice(min(eligible, key=lambda attempt: attempt.milliseconds), attempts, device)


def _bounds(
    file: Path, checkpoint: Checkpoint, held_out: Reference | None, precision: str, device: str
) -> Unseen | None:
    if held_out is None:
        return None
    return unseen(differences(file, checkpoint, held_out, device), PROBABILITY_LIMITS[precision])


def native_precisions(device: str, graph: Graph) -> list[str]:
    """The precisions that this machine computes natively, fp32 first."""
    if device == "cuda":
        return ["fp32", "fp16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
    # Only the packed graph has fp16 weights with fp32 activations; no CPU here computes fp16 activations natively.
    return [name for name in cpu_precisions() if graph.packed or name != "fp16"]


def timings(files: dict[str, Path], checkpoint: Checkpoint, texts: list[Text], device: str) -> dict[str, float]:
    """Milliseconds of a batch, small or large: the geometric mean over batches of the shortest time, interleaved.

    With the sum, the large batches alone would decide, and noise would break a tie between them however much longer a
    single text takes. The shortest time, because other processes only ever add to it.
    """
    models = {name: torch.jit.load(str(file), map_location=device).eval() for name, file in files.items()}
    batches = [
        tuple(tensor.to(device) for tensor in checkpoint.tokenize(texts[turn * 8 : turn * 8 + size]))
        for size in TIMED_BATCHES
        for turn in range(2)
    ]
    shortest = {name: [math.inf] * len(batches) for name in models}
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for turn in range(TIMED_ROUNDS + 1):
            for name, number in itertools.product(models, range(len(batches))):
                start = time.perf_counter()
                models[name](*batches[number])[0].cpu()
                if turn > 0:  # the first round is the warm-up
                    shortest[name][number] = min(shortest[name][number], 1e3 * (time.perf_counter() - start))
    return {name: statistics.geometric_mean(times) for name, times in shortest.items()}


def _refusal(checkpoint: Checkpoint, attempt: Attempt) -> str:
    found = (
        f"{attempt.parity.wrong} of {attempt.parity.texts} class ids differ from Hugging Face's (near ties below "
        f"{NEAR_TIE:g} aside; the limit is 0), {moved(checkpoint, attempt.parity)} (the "
        f"limit is {PROBABILITY_LIMITS[attempt.precision]:g})"
    )
    if attempt.precision == "fp32":
        model_type = checkpoint.model.config.model_type
        return f"{model_type}: in the exported fp32 file {found}; this architecture cannot be served"
    return f"PRECISION={attempt.precision}: {found}; use PRECISION=auto or fp32"
