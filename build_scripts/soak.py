"""Drive mixed valid and hostile traffic, kill processes at random, and check every single answer.

Three phases. The calm one kills nobody, so that resident memory early and late can be compared; then a flood; in the
stormy one a random process of the server is killed or stopped now and then. Outside the flood every class id is
compared with plain Hugging Face's. A request may fail only in a recovery window: from a kill until the service answers
again, RECOVERY_LIMIT_S at most.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
from tqdm import tqdm

from build_scripts import machine
from build_scripts.build import build
from build_scripts.health import probe
from build_scripts.hostile import GENERATE, Hostile, hostile_requests
from build_scripts.overload import Overload, overload, resident
from build_scripts.overload import report as overload_report
from build_scripts.processes import free_ports, running, wait_until
from build_scripts.settings import BUILD, CLASSIFIER, DATA, TOKENIZER, Address, BuildOptions, ServingError

CLIENTS, TIMEOUT_S = 16, 15.0
RECOVERY_LIMIT_S = 10.0
CALM_SHARE, FLOOD_SHARE = 0.6, 0.05
# The flood is of texts with fewer characters.
SHORT = 120
# Resident memory is compared after so many requests and at the end of the calm phase.
WARM_REQUESTS = 10_000
HOSTILE_SHARE, LIST_SHARE = 0.08, 0.05
# Parts of command lines, struck in turn.
VICTIMS = (f"/{TOKENIZER}/", f"/{CLASSIFIER}/", "bin/tritonserver")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)


@dataclass
class Findings:
    """What happened; shared by all threads, changed under the lock."""

    counts: Counter = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    window_until: float = 0.0

    def note(self, what: str, example: str = "") -> None:
        with self.lock:
            self.counts["sent"] += 1
            self.counts[what] += 1
            if example and len(self.examples) < 20:
                self.examples.append(f"{what}: {example}")


@dataclass(frozen=True)
class Traffic:
    """What may be sent, with what must come back."""

    texts: list[str]
    class_ids: dict[str, int]
    hostile: list[Hostile]


def soak(model: str, duration_s: float) -> bool:
    """Run for the duration, print and write the report; True if nothing was wrong, hung or failed unexcused."""
    directory = BUILD / "soak"
    built = build(BuildOptions(model=model, precision="fp32", repository=directory / "repository"))
    traffic = make_traffic(model, built.manifest["max_length"])
    address = Address("127.0.0.1", *free_ports(3))
    arguments = [
        *("serve", "--model", model, "--precision", "fp32", "--model-repository", str(directory / "repository")),
        *("--http-port", str(address.http_port), "--grpc-port", str(address.grpc_port)),
        *("--metrics-port", str(address.metrics_port)),
    ]
    log = directory / "server.log"
    with running("build_scripts", arguments, log) as process:
        wait_until(lambda: probe(address.http_url, 1).well, process.poll, log, 120)
        course = drive(process.pid, address, traffic, duration_s)
    text = report(course, duration_s)
    (directory / "report.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {directory / 'report.md'}; the server's log is {log}")
    unanswered = course.flood.flood.unanswered + course.flood.others
    return not unanswered and not any(course.findings.counts[bad] for bad in ("wrong", "hung", "failed"))


def make_traffic(model: str, max_length: int) -> Traffic:
    """Texts with Hugging Face's class ids, one text at a time, and every hostile request but the largest."""
    from build_scripts.checkpoint import load, resolve
    from build_scripts.demo import demo_checkpoint, headlines
    from build_scripts.parity import HOSTILE_TEXTS, reference

    checkpoint = load(resolve(model) if model else demo_checkpoint(), max_length)
    corpus = (DATA / "perf_corpus.txt").read_text(encoding="utf-8").splitlines()
    foreign = (DATA / "calibration.txt").read_text(encoding="utf-8").splitlines()
    texts = [*(text for _, text in headlines("heldout")), *corpus[:200], *foreign, *HOSTILE_TEXTS, *noise(300)]
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    class_ids = reference(checkpoint, texts).probabilities.argmax(1).tolist()
    vocab_size = checkpoint.model.get_input_embeddings().num_embeddings
    hostile = [r for r in hostile_requests(vocab_size, max_length, 64) if len(r.body) < 8 << 20]
    return Traffic(texts, dict(zip(texts, class_ids)), hostile)


def noise(count: int) -> list[str]:
    """Random Unicode without surrogates, short and reproducible."""
    rng = random.Random(11)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x600, 0x700), (0x4E00, 0x9FFF), (0x1F300, 0x1F650)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 80))) for _ in range(count)]


@dataclass
class Course:
    """What a whole run gave. memory: MiB by moment, see `calm`."""

    findings: Findings
    memory: dict[str, float]
    flood: Overload


def drive(supervisor: int, address: Address, traffic: Traffic, duration_s: float) -> Course:
    """Calm, flood and storm, one after the other."""
    findings = Findings()
    with (
        tqdm(total=round(duration_s), unit="s", desc="soaking", disable=None) as progress,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(clients(address, traffic, findings))
        memory = calm(supervisor, findings, CALM_SHARE * duration_s, progress)
        stack.close()
        headlines = [text for text in traffic.texts if len(text) < SHORT]
        flood = overload(address, supervisor, headlines, FLOOD_SHARE * duration_s)
        progress.update(round(FLOOD_SHARE * duration_s))
        stack.enter_context(clients(address, traffic, findings))
        storm(supervisor, address, findings, (1 - CALM_SHARE - FLOOD_SHARE) * duration_s, progress)
    return Course(findings, memory, flood)


@contextlib.contextmanager
def clients(address: Address, traffic: Traffic, findings: Findings) -> Iterator[None]:
    """CLIENTS closed loops in the background, until the block ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=client, args=(address, traffic, findings, stop, seed), daemon=True)
        for seed in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S + 5)
            if thread.is_alive():
                findings.note("hung", "a client never came back")


def calm(supervisor: int, findings: Findings, seconds: float, progress: tqdm) -> dict[str, float]:
    """Resident MiB after WARM_REQUESTS ("early") and at the end ("late"), with the "requests" sent by then."""
    memory: dict[str, float] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.5)
        progress.update(0.5)
        if "early" not in memory and findings.counts["sent"] >= WARM_REQUESTS:
            memory["early"] = resident(supervisor)
    return {**memory, "late": resident(supervisor), "requests": findings.counts["sent"]}


def storm(supervisor: int, address: Address, findings: Findings, seconds: float, progress: tqdm) -> None:
    """Strike every now and then; the last strike leaves time to recover."""
    rng, victims = random.Random(7), itertools.cycle(VICTIMS)
    begin = next_strike = time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        time.sleep(0.5)
        if time.monotonic() > next_strike and elapsed < max(seconds - RECOVERY_LIMIT_S, 1.0):
            strike(supervisor, address, findings, next(victims), rng.choice(SIGNALS))
            next_strike = time.monotonic() + rng.uniform(6, 12)
        progress.update(time.monotonic() - begin - elapsed)


def client(address: Address, traffic: Traffic, findings: Findings, stop: threading.Event, seed: int) -> None:
    """One closed loop over a kept connection; a new one after each failure."""
    rng = random.Random(seed)
    connection = http.client.HTTPConnection(address.client_host, address.http_port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        while not stop.is_set():
            try:
                ask(connection, traffic, findings, rng)
            except TimeoutError:
                findings.note("hung", "no answer within the timeout")
                connection.close()
            except (OSError, http.client.HTTPException) as error:
                excused = time.monotonic() < findings.window_until
                findings.note("lost in a recovery" if excused else "failed", "" if excused else repr(error))
                connection.close()
                time.sleep(0.05)


def ask(connection: http.client.HTTPConnection, traffic: Traffic, findings: Findings, rng: random.Random) -> None:
    """Send one request of a random kind and judge its answer."""
    kind = rng.random()
    if kind < HOSTILE_SHARE:
        bad = rng.choice(traffic.hostile)
        status, body = send(connection, bad.path, bad.body, bad.headers)
        judge(findings, bad.name, status, body, (status, bad.says in body) == (bad.status, True), "hostile, refused")
        return
    texts = rng.sample(traffic.texts, rng.randint(2, 12) if kind < HOSTILE_SHARE + LIST_SHARE else 1)
    content = json.dumps({"TEXT": texts if len(texts) > 1 else texts[0]}).encode()
    status, body = send(connection, GENERATE, content, {})
    expected = [traffic.class_ids[text] for text in texts]
    right = status == 200 and class_id(body) == (expected if len(texts) > 1 else expected[0])
    judge(findings, repr(texts)[:200], status, body, right, "valid, answered")


def class_id(body: str) -> object:
    """What an answer says; None if it says nothing, so that it is judged wrong and does not end the client."""
    try:
        return json.loads(body)["CLASS_ID"]
    except (ValueError, KeyError, TypeError):
        return None


def send(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "replace")


def judge(findings: Findings, name: str, status: int, body: str, right: bool, good: str) -> None:
    if right:
        findings.note(good)
    elif status >= 500 and time.monotonic() < findings.window_until:
        findings.note("lost in a recovery")
    else:
        findings.note("failed" if status >= 500 else "wrong", f"{name}: {status} {body[:200]}")


def strike(supervisor: int, address: Address, findings: Findings, victim: str, number: signal.Signals) -> None:
    """Kill or stop a process of the server, and wait until the service answers again. victim: one of VICTIMS."""
    family = psutil.Process(supervisor).children(recursive=True)
    process = next((one for one in family if victim in " ".join(one.cmdline()[:2])), None)
    if process is None:  # a restart that is not over
        return
    began = time.monotonic()
    findings.window_until = began + RECOVERY_LIMIT_S
    process.send_signal(number)
    time.sleep(1.5)  # a process that was stopped still answers what it had begun
    while time.monotonic() - began < 2 * RECOVERY_LIMIT_S and not probe(address.http_url, 1.0).well:
        time.sleep(0.05)
    took = time.monotonic() - began
    findings.recoveries.append((f"{victim.strip('/')} {number.name}", took))
    # Answers to requests of the last moments may still be on their way.
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
        f"Processes killed or stopped: {len(findings.recoveries)}.",
    ]
    if findings.recoveries:
        times = sorted(took for _, took in findings.recoveries)
        lines.append(f"Recovery: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s.")
        lines += ["", "| process and signal | recovered after, s |", "|---|---|"]
        lines += [f"| {name} | {took:.1f} |" for name, took in findings.recoveries]
    if "early" in memory:
        growth = memory["late"] / memory["early"] - 1
        lines += [
            "",
            f"Resident memory of the server: {memory['early']:.0f} MiB after {WARM_REQUESTS} requests, "
            f"{memory['late']:.0f} MiB after {memory['requests']:.0f} ({growth:+.1%}).",
        ]
    lines += ["", "## Flood", "", *overload_report(course.flood)]
    lines += ["", *(f"- {example}" for example in findings.examples)]
    return "\n".join(lines).rstrip() + "\n"


def check_duration(duration_s: float) -> float:
    """Raises ServingError for a duration in which nothing could be seen."""
    if duration_s < 30:
        raise ServingError(f"DURATION={duration_s:g}; expected at least 30 seconds")
    return duration_s
