"""One load level on a running ensemble: perf_analyzer for the client's side, Triton's own counters for the rest.

perf_analyzer reports throughput and percentiles. The parts of the time come from the server's statistics, read before
and after: these are exact sums, whereas perf_analyzer prints rounded means.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, ENSEMBLE, TOKENIZER
from build_scripts.core.options import Address
from build_scripts.serving.start.installation import embedded_wheel, perf_analyzer_environment

MODELS = (TOKENIZER, CLASSIFIER)
# Minimum number of perf_analyzer's windows; it averages the last three.
WINDOWS = 3
# Percentage within which the windows must agree. We report their spread instead.
ANY_SPREAD = "1000000"
START_AND_STOP_S = 60.0
# A window without an answer is an error to perf_analyzer. Retry with windows LONGER times as long, up to LONGEST_S.
LONGEST_S, LONGER = 60.0, 3.0
PASS = re.compile(r"Pass \[\d+\] throughput: ([\d.]+) infer/sec")


@dataclass(frozen=True)
class Counters:
    """One model's statistics since its load, or the difference of two; times in ns, summed over requests."""

    requests: int
    inferences: int
    executions: int
    queue_ns: int
    compute_ns: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(*(late - early for late, early in zip(vars(self).values(), vars(earlier).values())))

    @property
    def queue_ms(self) -> float:
        """Mean per request."""
        return self.queue_ns / max(self.requests, 1) / 1e6

    @property
    def compute_ms(self) -> float:
        """Mean per request: inputs, inference and outputs; a request counts the whole time of its batch."""
        return self.compute_ns / max(self.requests, 1) / 1e6

    @property
    def batch_fill(self) -> float:
        """Inferences per execution."""
        return self.inferences / max(self.executions, 1)


@dataclass(frozen=True)
class Level:
    """Results of one concurrency level. throughput: texts/s; spread: lowest and highest window; times in ms."""

    concurrency: int
    throughput: float
    spread: tuple[float, float]
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    tokenizer: Counters
    classifier: Counters

    @property
    def queue(self) -> float:
        """Time in both models' queues, mean per request."""
        return self.tokenizer.queue_ms + self.classifier.queue_ms

    @property
    def rest(self) -> float:
        """Time outside models and queues: the ensemble's scheduling, gRPC and perf_analyzer."""
        return self.mean - self.queue - self.tokenizer.compute_ms - self.classifier.compute_ms


def measure(address: Address, texts: Sequence[str], concurrency: int, seconds: float) -> Level:
    """Load the ensemble for at least `seconds`, one text a request. Raises ServingError if requests fail."""
    with tempfile.TemporaryDirectory() as directory:
        inputs, report = Path(directory) / "texts.json", Path(directory) / "report.csv"
        inputs.write_text(json.dumps({"data": [{"TEXT": [text]} for text in texts]}), encoding="utf-8")
        before = [counters(address, model) for model in MODELS]
        passes = _run(address, inputs, report, concurrency, seconds)
        after = [counters(address, model) for model in MODELS]
        row = read_report(report.read_text(encoding="utf-8"))
    tokenizer, classifier = (late - early for late, early in zip(after, before))
    if min(tokenizer.requests, classifier.requests) <= 0:
        raise ServingError(f"the server on {address.http_url} restarted during the measurement; see its log")
    return Level(
        concurrency=concurrency,
        spread=(min(passes), max(passes)) if passes else (row["throughput"], row["throughput"]),
        tokenizer=tokenizer,
        classifier=classifier,
        **row,
    )


def read_report(text: str) -> dict[str, float]:
    """throughput (texts/s), mean and percentiles (ms) from perf_analyzer's verbose CSV of one level."""
    row = next(csv.DictReader(text.splitlines()))
    names = {f"p{number}": f"p{number} latency" for number in (50, 90, 95, 99)}
    milliseconds = {name: float(row[column]) / 1e3 for name, column in {"mean": "Avg latency", **names}.items()}
    return {"throughput": float(row["Inferences/Second"]), **milliseconds}


def read_counters(answer: dict) -> Counters:
    """answer: of /v2/models/<name>/stats. Sums over all loaded versions."""
    versions = answer["model_stats"]
    sums = [version["inference_stats"] for version in versions]
    stages = ("compute_input", "compute_infer", "compute_output")
    return Counters(
        requests=sum(int(one["success"]["count"]) for one in sums),
        inferences=sum(int(version["inference_count"]) for version in versions),
        executions=sum(int(version["execution_count"]) for version in versions),
        queue_ns=sum(int(one["queue"]["ns"]) for one in sums),
        compute_ns=sum(int(one[stage]["ns"]) for one in sums for stage in stages),
    )


def counters(address: Address, model: str) -> Counters:
    with urllib.request.urlopen(f"{address.http_url}/v2/models/{model}/stats", timeout=10) as response:
        return read_counters(json.load(response))


def _run(address: Address, inputs: Path, report: Path, concurrency: int, seconds: float) -> list[float]:
    """Run perf_analyzer; returns the throughput of each window."""
    command = [
        _binary(),
        *("-m", ENSEMBLE, "-i", "grpc", "-u", address.grpc_url, "--input-data", str(inputs)),
        *("--concurrency-range", str(concurrency), "--measurement-interval", str(round(1000 * seconds / WINDOWS))),
        *("--stability-percentage", ANY_SPREAD, "--max-trials", str(WINDOWS), "-v", "--verbose-csv", "-f", str(report)),
    ]
    environment = {**os.environ, **perf_analyzer_environment(embedded_wheel())}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=2 * seconds + START_AND_STOP_S
        )
    except subprocess.TimeoutExpired as error:
        raise ServingError(f"perf_analyzer did not end within {error.timeout:.0f} s; is the server alive?") from error
    if "use a larger time window" in done.stderr and seconds < LONGEST_S:
        return _run(address, inputs, report, concurrency, LONGER * seconds)
    if done.returncode != 0 or not report.is_file():
        said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        raise ServingError(
            f"perf_analyzer ended with code {done.returncode} at concurrency {concurrency}: {' / '.join(said[-3:])}"
        )
    return [float(value) for value in PASS.findall(done.stdout)]


def _binary() -> str:
    beside = Path(sys.executable).parent / "perf_analyzer"
    found = str(beside) if beside.is_file() else shutil.which("perf_analyzer")
    if not found:
        raise ServingError("perf_analyzer is missing; it comes with tritonclient 2.51.0: run `make install`")
    return found
