"""Time several runtimes on the same batches, each in a separate process; they take turns.

    python -m build_scripts.benchmarks.runtimes --kind onnx --file model.onnx --batches batches.pt --seconds 3

In one process their threads disturb each other: ONNX Runtime's threads spin after a call, and torch was two to ten
times slower beside them. `measure` starts the processes. Each reads the name of a batch from stdin, runs the batch, and
writes the seconds of its calls as a JSON list.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from build_scripts.benchmarks.flask_service import onnx_runtime, openvino
from build_scripts.benchmarks.subprocesses import environment_without_variables
from build_scripts.convert.checkpoint import load
from build_scripts.convert.export import DTYPES
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores
from build_scripts.graph.packed_linear import PackedLinear
from build_scripts.serving.pytorch_backend.heap import keep_large_blocks
from build_scripts.serving.start import environment

# The classifier file, as it is served; Hugging Face's eager model; the exported model; one large matrix product.
FILE, PADDED, TRIMMED, TRIMMED_BF16 = "file", "padded", "trimmed", "trimmed-bf16"
ONNX, OPENVINO, PRODUCT, PRODUCT_BF16 = "onnx", "openvino", "product", "product-bf16"
KINDS = (FILE, PADDED, TRIMMED, TRIMMED_BF16, ONNX, OPENVINO, PRODUCT, PRODUCT_BF16)
# Rows, columns and reduction of the product: large enough to reach the machine's peak, small enough to repeat.
PEAK_SHAPE = (2048, 1024, 1024)
ROUNDS = 12
# Pause before each turn, in which the previous runtime's threads stop spinning.
PAUSE_S = 0.03
# Time budget and maximum number of the timed calls of one turn.
TURN_S, MOST_CALLS = 0.05, 5

# input_ids and attention_mask, (texts, max_length) int64 each, by the name of the batch.
Batches = dict[str, tuple[torch.Tensor, torch.Tensor]]
# Seconds of every timed call, by runtime and batch.
Seconds = dict[str, dict[str, list[float]]]


def measure(runtimes: Mapping[str, tuple[str, Path]], batches: Batches, directory: Path, seconds: float) -> Seconds:
    """Every runtime on every batch, about `seconds` each. runtimes: kind and file, by name. Raises ServingError.

    The name of a batch of equal lengths ends with "equal"; only the classifier file gets these.
    """
    inputs = directory / "batches.pt"
    torch.save(batches, inputs)
    found: Seconds = {name: {} for name in runtimes}
    with contextlib.ExitStack() as stack:
        turn_of = {
            name: stack.enter_context(running(kind, file, inputs, seconds, directory / f"{file.stem}-{kind}.log"))
            for name, (kind, file) in runtimes.items()
        }
        pairs = [(n, b) for b in batches for n in runtimes if runtimes[n][0] == FILE or not b.endswith("equal")]
        for name, batch in tqdm(pairs * ROUNDS, desc="all runtimes in turns", unit="turn", disable=None):
            times = found[name].setdefault(batch, [])
            if sum(times) < seconds:
                time.sleep(PAUSE_S)
                times += turn_of[name](batch)
    return found


@contextlib.contextmanager
def running(kind: str, file: Path, batches: Path, seconds: float, log: Path) -> Iterator[Callable[[str], list[float]]]:
    """A process of this module, as a function from the name of a batch to the seconds of each call of one turn.

    The function raises ServingError if the process ended. The process ends with its stdin.
    """
    command = [sys.executable, "-m", "build_scripts.benchmarks.runtimes", "--kind", kind, "--file", str(file)]
    served = environment.tuning() if kind == FILE else {}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--batches", str(batches), "--seconds", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**environment_without_variables(), **served},
        )

    def turn(batch: str) -> list[float]:
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(batch + "\n")
            process.stdin.flush()
        if answer := process.stdout.readline():
            return json.loads(answer)
        raise ServingError(f"{kind} failed on {batch!r}, code {process.wait()}; see {log}")

    with process:
        yield turn


def call_of(kind: str, file: Path) -> Callable[..., object]:
    """The function to time: from input_ids and attention_mask to outputs. file: a checkpoint for the eager model."""
    if kind == FILE:
        keep_large_blocks()
        return torch.jit.load(str(file)).eval()
    if kind in (PRODUCT, PRODUCT_BF16):
        return large_product(DTYPES["bf16" if kind == PRODUCT_BF16 else "fp32"])
    if kind in (ONNX, OPENVINO):
        session = onnx_runtime(file) if kind == ONNX else openvino(file)
        return lambda input_ids, attention_mask: session({"input_ids": input_ids, "attention_mask": attention_mask})
    model = load(file).model
    model = model.bfloat16() if kind == TRIMMED_BF16 else model
    return lambda input_ids, attention_mask: model(input_ids=input_ids, attention_mask=attention_mask).logits


def large_product(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """The matrix product of the classifier's linear layers, at a size that keeps every core busy."""
    rows, columns, inner = PEAK_SHAPE
    x = torch.randn(rows, inner).to(dtype)
    layer = PackedLinear(torch.randn(columns, inner), torch.zeros(columns), dtype=dtype)
    return lambda *_: layer(x)


def inputs_of(kind: str, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded for the classifier file, as it is served, and for "padded"; else trimmed to the longest text."""
    longest = mask.size(1) if kind in (FILE, PADDED) else int(mask.sum(1).max())
    return ids[:, :longest].contiguous(), mask[:, :longest].contiguous()


def turn_seconds(run: Callable[[], object], most: float) -> list[float]:
    """Seconds of each timed call of a turn. A first call that takes longer than `most` is the only one."""
    first = timed(run)
    if first > most:
        return [first]
    calls = min(MOST_CALLS, max(1, round(TURN_S / timed(run))))
    return [timed(run) for _ in range(calls)]


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description="Time one runtime on the batches that stdin names.")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--batches", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    batches: Batches = torch.load(arguments.batches, weights_only=True)
    call = call_of(arguments.kind, arguments.file)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for line in sys.stdin:
            run = partial(call, *inputs_of(arguments.kind, *batches[line.rstrip("\n")]))
            print(json.dumps(turn_seconds(run, arguments.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
