"""Commands that measure: perf, compare, tune, bench."""

from __future__ import annotations

from pathlib import Path

from build_scripts.core.command_line import PROGRAM, command
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address, BuildOptions
from build_scripts.core.paths import SOURCE_REPOSITORY


@command(f"{PROGRAM} perf --seconds 3", leave_out=["name", "grpc_port", "metrics_port"])
def perf(options: BuildOptions, address: Address, seconds: float = 12.0) -> None:
    """Sweep the running ensemble, or one started for it, with perf_analyzer; writes build/perf."""
    from build_scripts.benchmarks.perf import perf as sweep

    print(f"\nwritten: {sweep(options, address, seconds)}")


@command(f"{PROGRAM} compare --model ./my-checkpoint")
def compare(model: str = "", max_length: int | None = None, seconds: float = 0.8) -> None:
    """Compare the ensemble with the services it replaces, in one run; writes build/compare."""
    from build_scripts.benchmarks.compare import compare as measure

    print(f"\nwritten: {measure(model, max_length, seconds)}")


@command(f"{PROGRAM} tune --aim throughput --p99-ms 50 --file my-texts.txt")
def tune(
    aim: str = "latency",
    p99_ms: float | None = None,
    file: str | None = None,
    repository: Path = SOURCE_REPOSITORY,
    seconds: float = 2.0,
) -> None:
    """Find the classifier instances and threads that serve best here; writes classifier/config.pbtxt."""
    from build_scripts.benchmarks.corpus import corpus
    from build_scripts.benchmarks.tune import tune as find
    from build_scripts.core.text_files import read_lines

    texts = corpus() if file is None else [line for line in read_lines("FILE", file) if line.strip()]
    if not texts:
        raise ServingError(f"FILE={file} holds no text; expected one per line")
    print(f"\nwritten: {find(repository.absolute(), texts, aim, p99_ms, seconds)}")


@command(f"{PROGRAM} bench --model ./my-checkpoint")
def bench(model: str = "", max_length: int | None = None, seconds: float = 3.0) -> None:
    """Time the classifier file alone, against the machine's peak and other runtimes; writes build/bench."""
    from build_scripts.benchmarks.bench import bench as measure

    print(f"\nwritten: {measure(model, max_length, seconds)}")


COMMANDS = (perf, compare, tune, bench)
