"""Find the number of classifier instances and their threads that serve best on this machine, and write it down.

    python -m build_scripts tune --aim throughput --p99-ms 50

Each setting runs on a copy of the model repository, under load with the user's texts or the project's. The best setting
goes into the repository's classifier/config.pbtxt, where the server reads it; the table of all settings goes into
build/tune/report.md. For CPUs only.
"""

from __future__ import annotations

import re
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from build_scripts.benchmarks import interactive, report, services, subprocesses
from build_scripts.benchmarks.http_load import percentile
from build_scripts.benchmarks.interactive import LOADS, Load
from build_scripts.core import markdown
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores, describe, has_gpu
from build_scripts.core.names import CLASSIFIER
from build_scripts.core.paths import BUILD
from build_scripts.releases.store import CONFIG, require_release
from build_scripts.serving.start.installation import Installation, find_installation

OUTPUT = BUILD / "tune"
AIMS = ("latency", "throughput")
# Loads of the single client that AIM=latency judges.
ALONE = (Load(), *(load for load in LOADS if load.pause_ms))
ARRIVALS = tuple(load for load in LOADS if load.share)
# Number of clients that keep every instance's batches filled.
MANY = 32
ROUNDS = 2
# Two settings whose aims differ by less are level; the other aim then decides.
LEVEL = 0.03
BEGIN, END = "# Chosen by `make tune`", "# End of what `make tune` chose.\n"
CHOSEN = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


@dataclass
class Setting:
    """A number of instances and the threads of each, with its results.

    p99_ms, rate: with MANY clients, one value a round. latencies: ms of all rounds, by load.
    """

    instances: int
    threads: int
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    latencies: dict[Load, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.instances} × {self.threads}"

    @property
    def latency(self) -> float:
        """Mean of one client's p50 over its pauses, ms."""
        return statistics.mean(statistics.median(self.latencies[load]) for load in ALONE)

    @property
    def throughput(self) -> float:
        return statistics.median(self.rate)

    @property
    def tail(self) -> float:
        """p99 with many clients, ms."""
        return statistics.median(self.p99_ms)


def tune(repository: Path, texts: Sequence[str], aim: str, p99_ms: float | None, seconds: float) -> Path:
    """Measure, write the best into the repository, return the report. Raises ServingError."""
    subprocesses.end_on_sigterm()
    if aim not in AIMS:
        raise ServingError(f"AIM={aim}; expected one of {', '.join(AIMS)}")
    if has_gpu():
        raise ServingError(
            "make tune chooses instances and threads for a CPU; this machine has a GPU, which does not need them"
        )
    manifest = require_release(repository)
    committed = read_config(repository)
    settings = [Setting(*pair) for pair in candidates(cores())]
    installation = find_installation()
    with tqdm(settings * ROUNDS, unit="setting", disable=None) as progress:
        for setting in progress:
            progress.set_description(f"{setting} threads")
            # The arrivals are the same for all: shares of the first setting's capacity.
            measure(setting, installation, repository, committed, texts, seconds, settings[0])
    best = choose(settings, aim, p99_ms)
    limit = f", P99_MS={p99_ms:g}" if p99_ms else ""
    heading = f"{BEGIN} for AIM={aim}{limit} on {describe()}."
    loads, capacity = (*ALONE, *ARRIVALS), settings[0].rate[0]
    table = markdown.table(
        [
            "instances × threads",
            f"requests/s at {MANY}",
            f"p99 ms at {MANY}",
            *(interactive.heading(load, capacity) for load in loads),
            "",
        ],
        [
            [
                str(one),
                *map(report.number, (one.throughput, one.tail)),
                *(interactive.summary(sorted(one.latencies[load])) for load in loads),
                "chosen" if one is best else "",
            ]
            for one in settings
        ],
    )
    (repository / CLASSIFIER / CONFIG).write_text(written(committed, best, heading), encoding="utf-8")
    facts = report.facts(
        model=manifest["checkpoint"],
        aim=f"{aim}{limit}",
        texts=f"{len(texts)}, one a request",
        measured=f"{ROUNDS} rounds of {seconds:g} s or more; p50 / p95 ms of one client that pauses, and of Poisson "
        "arrivals",
        written=f"{CLASSIFIER}/{CONFIG}; a running server reads it at its next start",
    )
    text = "\n\n".join(["# Instances and threads", facts, table])
    print(text)
    return report.write(OUTPUT, text)


def candidates(count: int) -> list[tuple[int, int]]:
    """(instances, threads) for `count` cores: all pairs that fill them evenly, and one instance with fewer threads.

    With more threads than cores, throughput falls to a fraction.
    """
    powers = [2**power for power in range(count.bit_length()) if 2**power <= count]
    filling = {(instances, count // instances) for instances in powers}
    return sorted(filling | {(1, threads) for threads in powers if 1 < threads <= 16})


def read_config(repository: Path) -> str:
    """The classifier's config without what an earlier run chose."""
    file = repository / CLASSIFIER / CONFIG
    text = CHOSEN.sub("\n", file.read_text(encoding="utf-8"))
    for name in ("instance_group", "INTRA_OP_THREAD_COUNT"):
        if any(name in line.split("#")[0] for line in text.splitlines()):
            raise ServingError(f"{file} sets {name} already; remove it, and let make tune choose")
    return text


def written(config: str, best: Setting, heading: str) -> str:
    """The config with the setting at its end."""
    return (
        f"{config.rstrip()}\n\n{heading}\n"
        f"instance_group [ {{ kind: KIND_CPU, count: {best.instances} }} ]\n"
        "parameters {\n"
        f'  key: "INTRA_OP_THREAD_COUNT", value: {{ string_value: "{best.threads}" }}\n'
        f"}}\n{END}"
    )


def measure(
    setting: Setting,
    installation: Installation,
    repository: Path,
    config: str,
    texts: Sequence[str],
    seconds: float,
    reference: Setting,
) -> None:
    """One round of the setting, on a new server. reference: the setting whose first rate is the capacity."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "repository"
        shutil.copytree(repository, copy, symlinks=True)
        (copy / CLASSIFIER / CONFIG).write_text(written(config, setting, BEGIN), encoding="utf-8")
        log = OUTPUT / f"{setting.instances}x{setting.threads}.log"
        with services.ensemble(f"{setting} threads (log: {log})", installation, copy, log) as service:
            service.ask(list(texts))  # warm-up: the first call on each length is slow
            service.load(texts, seconds / 2, concurrency=MANY)
            many = service.load(texts, seconds, concurrency=MANY)
            setting.p99_ms.append(percentile(many.all_ok(service.name), 0.99))
            setting.rate.append(many.rate)
            capacity = reference.rate[0]
            for load in (*ALONE, *ARRIVALS):
                found = interactive.load_once(service, texts, load, capacity, seconds)
                setting.latencies.setdefault(load, []).extend(found)


def choose(settings: Sequence[Setting], aim: str, p99_ms: float | None) -> Setting:
    """The best for the aim within the limit; the other aim decides between settings that are level."""
    allowed = [one for one in settings if p99_ms is None or one.tail <= p99_ms]
    if not allowed:
        lowest = min(settings, key=lambda one: one.tail)
        raise ServingError(
            f"no setting keeps P99_MS={p99_ms:g} with {MANY} clients: the lowest is {lowest.tail:.0f} ms "
            f"({lowest.instances} × {lowest.threads} threads); allow more, or use a larger machine"
        )
    if aim == "latency":
        bound = (1 + LEVEL) * min(one.latency for one in allowed)
        return max((one for one in allowed if one.latency <= bound), key=lambda one: one.throughput)
    bound = (1 - LEVEL) * max(one.throughput for one in allowed)
    return min((one for one in allowed if one.throughput >= bound), key=lambda one: one.latency)
