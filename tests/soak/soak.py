"""Send valid and hostile traffic, kill processes under it, and check every answer.

Four phases: calm, attacks, flood, storm. The calm phase kills no process, so its early and late memory are comparable.
The storm kills or stops the server's processes, one after the other. Outside the flood every class id is compared with
Hugging Face's. A request may fail only in a recovery window, which opens with a kill or a deadly attack and closes when
the service answers again, after RECOVERY_LIMIT_S at most.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from dataclasses import dataclass
from statistics import median

import psutil
from tqdm import tqdm

from build_scripts.benchmarks.subprocesses import free_ports, running, wait_until
from build_scripts.core import machine
from build_scripts.core.errors import ServingError
from build_scripts.core.names import CLASSIFIER, TOKENIZER
from build_scripts.core.options import Address, BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.releases.pipeline import build
from build_scripts.serving.keep.inference import probe
from build_scripts.serving.start.installation import find_installation
from tests.soak.overload import Overload, overload, resident
from tests.soak.overload import report as overload_report
from tests.soak.traffic import CLIENTS, Findings, Traffic, clients, make_traffic
from tests.soak.under_attack import RECOVERY_LIMIT_S, Attacked, attack_all, attack_report

CALM_SHARE, ATTACK_SHARE, FLOOD_SHARE = 0.4, 0.2, 0.05
# Texts of the flood have fewer characters.
SHORT = 120
# Requests before the early sample of memory; samples of each median.
WARM_REQUESTS, SAMPLES = 10_000, 20
# The last kill comes this long before the end, so that the recovery is seen.
LAST_KILL_S = 10.0
# Parts of command lines, struck one after the other.
VICTIMS = (f"/{TOKENIZER}/", f"/{CLASSIFIER}/", "bin/tritonserver")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)


def soak(model: str, max_length: int | None, duration_s: float) -> bool:
    """Run for `duration_s`, print and write the report; True if no request was wrong, hung or failed unexcused."""
    directory = BUILD / "soak"
    built = build(BuildOptions(model, max_length, "fp32", repository=directory / "repository"))
    traffic = make_traffic(model, built.manifest["max_length"], "embedded" in find_installation().description)
    address = Address("127.0.0.1", *free_ports(3))
    arguments = [
        *("serve", "--model", model, "--precision", "fp32", "--model-repository", str(directory / "repository")),
        *([] if max_length is None else ["--max-length", str(max_length)]),
        *("--http-port", str(address.http_port), "--grpc-port", str(address.grpc_port)),
        *("--metrics-port", str(address.metrics_port)),
    ]
    log = directory / "server.log"
    with running("build_scripts", arguments, log) as process:
        wait_until(lambda: probe(address.http_url, 1).healthy, process.poll, log, 120)
        course = drive(process.pid, address, traffic, duration_s)
    text = report(course, duration_s)
    (directory / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {directory / 'report.md'}; the server's log is {log}")
    unanswered = course.flood.flood.unanswered + course.flood.others
    bad = sum(course.findings.counts[what] for what in ("wrong", "hung", "failed"))
    return not unanswered and not bad and all(attacked.survived for attacked in course.attacked)


@dataclass
class Course:
    """Results of a whole run. memory: MiB by moment, see `calm`."""

    findings: Findings
    memory: dict[str, float]
    attacked: list[Attacked]
    flood: Overload


def drive(supervisor: int, address: Address, traffic: Traffic, duration_s: float) -> Course:
    """Calm, attacks, flood and storm, in this order."""
    findings = Findings()
    with tqdm(total=round(duration_s), unit="s", desc="soaking", disable=None) as progress:
        with clients(address, traffic, findings):
            memory = calm(supervisor, findings, CALM_SHARE * duration_s, progress)
        attacked = attack_all(supervisor, address, traffic, findings, ATTACK_SHARE * duration_s, progress)
        headlines = [text for text in traffic.texts if len(text) < SHORT]
        flood = overload(address, supervisor, headlines, FLOOD_SHARE * duration_s)
        progress.update(round(FLOOD_SHARE * duration_s))
        rest = 1 - CALM_SHARE - ATTACK_SHARE - FLOOD_SHARE
        with clients(address, traffic, findings):
            storm(supervisor, address, findings, rest * duration_s, progress)
            memory["end"] = resident(supervisor)
    return Course(findings, memory, attacked, flood)


def calm(supervisor: int, findings: Findings, seconds: float, progress: tqdm) -> dict[str, float]:
    """Resident MiB after WARM_REQUESTS ("early") and at the end ("late"), and the number of "requests".

    Medians of SAMPLES: memory varies by 3 % with the batches in progress.
    """
    warm: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        progress.update(0.5)
        if findings.counts["sent"] >= WARM_REQUESTS:
            warm.append(resident(supervisor))
    early_and_late = {"early": median(warm[:SAMPLES]), "late": median(warm[-SAMPLES:])} if warm else {}
    return {**early_and_late, "requests": findings.counts["sent"]}


def storm(supervisor: int, address: Address, findings: Findings, seconds: float, progress: tqdm) -> None:
    """Kill or stop a process every 6 to 12 s, the last one LAST_KILL_S before the end."""
    rng, victims = random.Random(7), itertools.cycle(VICTIMS)
    begin = next_kill = time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        time.sleep(0.5)
        if time.monotonic() > next_kill and elapsed < max(seconds - LAST_KILL_S, 1.0):
            kill_one(supervisor, address, findings, next(victims), rng.choice(SIGNALS))
            next_kill = time.monotonic() + rng.uniform(6, 12)
        progress.update(time.monotonic() - begin - elapsed)


def kill_one(supervisor: int, address: Address, findings: Findings, victim: str, number: signal.Signals) -> None:
    """Kill or stop a process of the server, and wait until the service answers again. victim: one of VICTIMS."""
    process = None
    for one in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if victim in " ".join(one.cmdline()[:2]):
                process = one
    if process is None:  # still restarting
        return
    began = time.monotonic()
    findings.window_until = began + RECOVERY_LIMIT_S
    process.send_signal(number)
    time.sleep(1.5)  # a stopped process still answers what it had begun
    while time.monotonic() - began < RECOVERY_LIMIT_S and not probe(address.http_url, 1.0).healthy:
        time.sleep(0.05)
    took = time.monotonic() - began
    findings.recoveries.append((f"{victim.strip('/')} {number.name}", took))
    # Answers to the last requests may still be on their way.
    findings.window_until = min(findings.window_until, time.monotonic() + 0.5)


def report(course: Course, duration_s: float) -> str:
    """Markdown."""
    findings, memory = course.findings, course.memory
    counts = findings.counts
    lines = [
        "# Soak",
        "",
        f"{duration_s:.0f} s, {CLIENTS} clients, fp32, default limits; {machine.describe()}",
        "",
        "| what | requests |",
        "|---|---|",
        *(
            f"| {what} | {counts[what]} |"
            for what in ("sent", "valid, answered", "hostile, refused", "lost in a recovery", "failed", "wrong", "hung")
        ),
        "",
        f"The valid requests held {counts['texts']} texts; every class id is Hugging Face's.",
        f"Recoveries, from processes killed or stopped and from attacks: {len(findings.recoveries)}.",
    ]
    if findings.recoveries:
        times = sorted(took for _, took in findings.recoveries)
        lines.append(f"Recovery: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s.")
        lines += ["", "| process and signal, or attack | recovered after, s |", "|---|---|"]
        lines += [f"| {name} | {took:.1f} |" for name, took in findings.recoveries]
    if "early" in memory:
        growth = memory["late"] / memory["early"] - 1
        lines += [
            "",
            f"Resident memory of the server: {memory['early']:.0f} MiB after {WARM_REQUESTS} requests, "
            f"{memory['late']:.0f} MiB after {memory['requests']:.0f} ({growth:+.1%}), "
            f"{memory['end']:.0f} MiB at the end.",
        ]
    lines += ["", "## Attacks", "", *attack_report(course.attacked)]
    lines += ["", "## Flood", "", *overload_report(course.flood)]
    if findings.examples:
        lines += ["", "## Findings, by kind", ""]
        by_count = sorted(findings.examples.items(), key=lambda one: -one[1][0])
        lines += [f"- {count} times {kind}; the first: {example}" for kind, (count, example) in by_count]
    return "\n".join(lines).rstrip() + "\n"


def check_duration(duration_s: float) -> float:
    """Raises ServingError for a duration that is too short for all phases."""
    if duration_s < 30:
        raise ServingError(f"DURATION={duration_s:g}; expected at least 30 seconds")
    return duration_s
