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
from build_scripts.convert.export import PACKED, export
from build_scripts.convert.parity import Parity, Reference, measure
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cpu_precisions

# The gate: no probability may move by more, and no class id may change unless it is a near tie.
MAX_PROBABILITY_ERROR = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}
TIMED_BATCHES = (1, 8)
TIMED_ROUNDS = 7


@dataclass(frozen=True)
class Attempt:
    """One precision, exported and measured. milliseconds: what `timings` found."""

    precision: str
    graph: str
    parity: Parity
    milliseconds: float
    passed: bool


@dataclass(frozen=True)
class Choice:
    """The chosen attempt and all others, as they are printed and stored."""

    chosen: Attempt
    attempts: list[Attempt]
    device: str

    def as_dict(self) -> dict:
        return {
            "precision": self.chosen.precision,
            "graph": self.chosen.graph,
            "device": self.device,
            "attempts": [asdict(a) for a in self.attempts],
        }


def native_precisions(device: str) -> list[str]:
    """What this machine computes natively, fp32 first."""
    if device == "cuda":
        return ["fp32", "fp16"] + (["bf16"] if torch.cuda.is_bf16_supported() else [])
    return cpu_precisions()


def choose(checkpoint: Checkpoint, asked: str, expected: Reference, directory: Path) -> Choice:
    """Export into `directory`, one file a precision, measure, choose. Raises ServingError if fp32 answers wrongly."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # fp32 always comes first: it tells a graph that computes something else from a precision that rounds.
    names = native_precisions(device) if asked == "auto" else list(dict.fromkeys(["fp32", asked]))
    graphs = {"fp32": export(checkpoint, "fp32", file_of(directory, "fp32"))}
    if asked == "auto" and device == "cpu" and graphs["fp32"] != PACKED:
        # The packed graph alone has fp16 weights only; any other computes in fp16, which no CPU here does natively.
        names = [name for name in names if name != "fp16"]
    graphs |= {name: export(checkpoint, name, file_of(directory, name)) for name in names if name != "fp32"}
    parities = {name: measure(file_of(directory, name), checkpoint, expected, device) for name in names}
    times = timings({name: file_of(directory, name) for name in names}, checkpoint, expected.texts, device)
    attempts = [
        Attempt(name, graphs[name], parities[name], times[name], passes(parities[name], name)) for name in names
    ]
    _refuse_wrong_graph(checkpoint, attempts)
    # The user's own choice is kept, whether it passes or not.
    eligible = [attempt for attempt in attempts if (attempt.passed if asked == "auto" else attempt.precision == asked)]
    return Choice(min(eligible, key=lambda attempt: attempt.milliseconds), attempts, device)


def file_of(directory: Path, precision: str) -> Path:
    return directory / f"model.{precision}.pt"


def passes(parity: Parity, precision: str) -> bool:
    return parity.wrong == 0 and parity.max_probability_error <= MAX_PROBABILITY_ERROR[precision]


def timings(files: dict[str, Path], checkpoint: Checkpoint, texts: list[Text], device: str) -> dict[str, float]:
    """Milliseconds a batch, of one text or of more: the geometric mean of each batch's least, the files taking turns.

    With their sum the large batches would decide alone, and a tie between these would be broken by noise, however much
    longer a lone text takes. The least, because other programs only ever make a batch take longer.
    """
    models = {name: torch.jit.load(str(file), map_location=device).eval() for name, file in files.items()}
    batches = [
        tuple(tensor.to(device) for tensor in checkpoint.tokenize(texts[turn * 8 : turn * 8 + size]))
        for size in TIMED_BATCHES
        for turn in range(2)
    ]
    least = {name: [math.inf] * len(batches) for name in models}
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for turn in range(TIMED_ROUNDS + 1):
            for name, number in itertools.product(models, range(len(batches))):
                start = time.perf_counter()
                models[name](*batches[number])[0].cpu()
                if turn > 0:  # the first round warms up
                    least[name][number] = min(least[name][number], 1e3 * (time.perf_counter() - start))
    return {name: statistics.geometric_mean(times) for name, times in least.items()}


def _refuse_wrong_graph(checkpoint: Checkpoint, attempts: list[Attempt]) -> None:
    for attempt in attempts:
        if attempt.precision == "fp32" and not attempt.passed:
            raise ServingError(
                f"{checkpoint.model.config.model_type}: the exported fp32 file answers unlike Hugging Face "
                f"({attempt.parity.wrong} of {attempt.parity.texts} class ids differ, a probability moves by "
                f"{attempt.parity.max_probability_error:.2g}; at most {MAX_PROBABILITY_ERROR['fp32']:g} is accepted); "
                "this architecture cannot be served"
            )
