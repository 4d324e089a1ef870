"""The classifier file beside ONNX Runtime's and OpenVINO's sessions, each in a process of its own; they take turns.

    python -m build_scripts.benchmarks.runtimes --kind onnx --file model.onnx --batches batches.pt

In one process their threads disturb each other: ONNX Runtime's spin for a while after a call, and torch was two to ten
times slower beside them. `measure` starts the processes. Each reads the name of a batch from stdin, runs it, and writes
the seconds that its calls took as a JSON list.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from build_scripts.benchmarks import report
from build_scripts.benchmarks.flask_service import export_onnx, onnx_runtime, openvino
from build_scripts.benchmarks.subprocesses import environment_without_variables
from build_scripts.benchmarks.timing import PAUSE_S, ROUNDS, calls_a_turn, timed
from build_scripts.convert.checkpoint import Checkpoint
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores

# What the others' times are compared with, and what they compute in fp32.
BASELINE = "ONNX Runtime"
KINDS = ("torch", "onnx", "openvino")

# input_ids and attention_mask, (texts, max_length) int64 each, by the name of the batch.
Batches = dict[str, tuple[torch.Tensor, torch.Tensor]]
# Of every timed call, by runtime and batch.
Seconds = dict[str, dict[str, list[float]]]


def measure(files: dict[str, Path], checkpoint: Checkpoint, batches: Batches, directory: Path) -> Seconds:
    """Every runtime on every batch. files: the classifier, by precision. directory: for what is made on the way.

    Raises ServingError if a runtime fails.
    """
    onnx, inputs = directory / "model.onnx", directory / "batches.pt"
    export_onnx(checkpoint, onnx)
    torch.save(batches, inputs)
    kinds = {precision: ("torch", file) for precision, file in files.items()} | {BASELINE: ("onnx", onnx)}
    if importlib.util.find_spec("openvino"):
        kinds["OpenVINO"] = ("openvino", onnx)
    found: Seconds = {name: {batch: [] for batch in batches} for name in kinds}
    with contextlib.ExitStack() as stack:
        turn_of = {
            name: stack.enter_context(running(kind, file, inputs, directory / f"{file.stem}-{kind}.log"))
            for name, (kind, file) in kinds.items()
        }
        turns = [(batch, name) for _ in range(ROUNDS) for batch in batches for name in kinds]
        for batch, name in tqdm(turns, desc="beside other runtimes", unit="turn", disable=None, leave=False):
            time.sleep(PAUSE_S)
            found[name][batch] += turn_of[name](batch)
    return found


@contextlib.contextmanager
def running(kind: str, file: Path, batches: Path, log: Path) -> Iterator[Callable[[str], list[float]]]:
    """A process of this module, as a function: from the name of a batch to the seconds of each call of one turn.

    It raises ServingError if the process ended. The process ends with its stdin.
    """
    command = [sys.executable, "-m", "build_scripts.benchmarks.runtimes", "--kind", kind, "--file", str(file)]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--batches", str(batches)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment_without_variables(),
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


def section(found: Seconds, batches: Batches) -> list[str]:
    """Markdown, to be joined by empty lines."""
    names = [name for name in found if name != BASELINE]
    rows = []
    for batch, (_, mask) in batches.items():
        ms = {name: 1e3 * statistics.median(seconds[batch]) for name, seconds in found.items()}
        cells = [f"{report.number(ms[name])} ({ms[name] / ms[BASELINE]:.2f})" for name in names]
        rows.append([batch, str(int(mask.sum())), report.number(ms[BASELINE]), *cells])
    return [
        "## Beside other runtimes",
        "Milliseconds a batch, medians; in parentheses the share of ONNX Runtime's time. Each in a process of its own, "
        "on all cores, by turns. ONNX Runtime in fp32 and OpenVINO, which chooses its precision itself, run Hugging "
        "Face's exported model on batches trimmed to their longest text; the file gets them padded, as it is served.",
        report.table(["batch", "tokens", f"{BASELINE} ms", *(f"{name} ms" for name in names)], rows),
    ]


def call_of(kind: str, file: Path) -> Callable[[torch.Tensor, torch.Tensor], object]:
    """What is timed: from input_ids and attention_mask to the outputs."""
    if kind == "torch":
        return torch.jit.load(str(file)).eval()
    session = onnx_runtime(file) if kind == "onnx" else openvino(file)
    return lambda input_ids, attention_mask: session({"input_ids": input_ids, "attention_mask": attention_mask})


def inputs_of(kind: str, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The file gets a batch padded, as it is served; the others trimmed to its longest text."""
    longest = mask.size(1) if kind == "torch" else int(mask.sum(1).max())
    return ids[:, :longest].contiguous(), mask[:, :longest].contiguous()


def main() -> int:
    parser = argparse.ArgumentParser(description="Time one runtime on batches that are named on stdin.")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--batches", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    batches: Batches = torch.load(arguments.batches, weights_only=True)
    call = call_of(arguments.kind, arguments.file)
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        for line in sys.stdin:
            run = partial(call, *inputs_of(arguments.kind, *batches[line.rstrip("\n")]))
            print(json.dumps([timed(run) for _ in range(calls_a_turn(timed(run)))]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
