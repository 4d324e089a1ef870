"""Find how many classifier instances with how many threads each serve best on this machine, and write it down.

    python -m build_scripts tune --aim throughput --p99-ms 50

A server is started for each setting, on a copy of the model repository, and loaded with the user's texts or the
project's. The best goes into the repository's classifier/config.pbtxt, which is where the server takes it from; the
table of all that was tried goes into build/tune/report.md. For CPUs only.
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

from build_scripts.benchmarks import contenders, http_load, report, subprocesses
from build_scripts.core.errors import ServingError
from build_scripts.core.machine import cores, describe, has_gpu
from build_scripts.core.names import CLASSIFIER
from build_scripts.core.paths import BUILD
from build_scripts.releases.store import CONFIG, require_release
from build_scripts.serving.start.installation import Installation, find_installation

OUTPUT = BUILD / "tune"
AIMS = ("latency", "throughput")
# Clients: one, whose latency is what AIM=latency looks at, and enough that every instance has a batch.
ALONE, MANY = 1, 32
ROUNDS = 2
# A difference in the aim that is smaller is decided by the other one.
LEVEL = 0.03
BEGIN, END = "# Chosen by `make tune`", "# End of what `make tune` chose.\n"
CHOSEN = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)


@dataclass
class Setting:
    """So many instances with so many threads each, and what they did: one value a round."""

    instances: int
    threads: int
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)

    @property
    def latency(self) -> float:
        return statistics.median(self.p50_ms)

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
        raise ServingError("make tune chooses instances and threads on a CPU; this machine has a GPU, which needs none")
    manifest = require_release(repository)
    committed = read_config(repository)
    settings = [Setting(*pair) for pair in candidates(cores())]
    installation = find_installation()
    with tqdm(total=ROUNDS * len(settings), unit="setting", disable=None) as progress:
        for _ in range(ROUNDS):
            for setting in settings:
                progress.set_description(f"{setting.instances} × {setting.threads} threads")
                measure(setting, installation, repository, committed, texts, seconds)
                progress.update()
    best = choose(settings, aim, p99_ms)
    limit = f", P99_MS={p99_ms:g}" if p99_ms else ""
    heading = f"{BEGIN} for AIM={aim}{limit} on {describe()}."
    table = report.table(
        ["instances × threads", f"p50 ms at {ALONE}", f"requests/s at {MANY}", f"p99 ms at {MANY}", ""],
        [
            [
                f"{one.instances} × {one.threads}",
                *map(report.number, (one.latency, one.throughput, one.tail)),
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
        measured=f"medians of {ROUNDS} rounds of {seconds:g} s",
        written=f"{CLASSIFIER}/{CONFIG}; a running server takes it with its next start",
    )
    text = "\n\n".join(["# Instances and threads", facts, table])
    print(text)
    return report.write(OUTPUT, text)


def candidates(count: int) -> list[tuple[int, int]]:
    """(instances, threads) for so many cores: all that fill them evenly, and one instance with fewer threads.

    More threads than cores together fall to a fraction.
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
    setting: Setting, installation: Installation, repository: Path, config: str, texts: Sequence[str], seconds: float
) -> None:
    """One round of the setting, on a server of its own."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "repository"
        shutil.copytree(repository, copy, symlinks=True)
        (copy / CLASSIFIER / CONFIG).write_text(written(config, setting, BEGIN), encoding="utf-8")
        log = OUTPUT / f"{setting.instances}x{setting.threads}.log"
        with contenders.ensemble("the ensemble", installation, copy, log) as service:
            bodies = [service.body(text) for text in texts]
            service.ask(list(texts))  # every length once, in every instance about: the first of each is slow
            http_load.load(service.port, service.path, bodies, MANY, seconds / 2)
            alone = http_load.load(service.port, service.path, bodies, ALONE, seconds)
            many = http_load.load(service.port, service.path, bodies, MANY, seconds)
    for answers in (alone, many):
        if set(answers.latencies_ms) != {200}:
            raise ServingError(f"the server failed with {setting.instances} × {setting.threads} threads; see {log}")
    setting.p50_ms.append(statistics.median(alone.latencies_ms[200]))
    setting.rate.append(many.rate)
    latencies = many.latencies_ms[200]
    setting.p99_ms.append(latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))])


def choose(settings: Sequence[Setting], aim: str, p99_ms: float | None) -> Setting:
    """The best for the aim among those that keep the limit; what is level there is decided by the other aim."""
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
