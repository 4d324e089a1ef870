"""Valid and hostile traffic on the ensemble; every answer is compared with Hugging Face's."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.options import Address
from build_scripts.core.paths import CALIBRATION, DATA
from tests.soak.hostile import GENERATE, INFER, Hostile, hostile_requests

CLIENTS, TIMEOUT_S = 16, 15.0
HOSTILE_SHARE, LIST_SHARE = 0.08, 0.05


@dataclass
class Findings:
    """Results; shared by all threads, changed under the lock.

    counts: requests by verdict, and the number of answered texts.
    examples: number and first example of each kind of failure.
    window_until: end of the recovery window, in monotonic seconds; requests may fail until then.
    """

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, tuple[int, str]] = field(default_factory=dict)
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    window_until: float = 0.0

    def note(self, what: str, example: str = "", texts: int = 0, kind: str = "") -> None:
        """kind: groups examples; by default the example."""
        with self.lock:
            self.counts["sent"] += 1
            self.counts[what] += 1
            self.counts["texts"] += texts
            if example:
                key = f"{what}: {kind or example}"
                count, first = self.examples.get(key, (0, example))
                self.examples[key] = (count + 1, first)


@dataclass(frozen=True)
class Traffic:
    """Requests and their expected answers. embedded: the Python-based backend runs."""

    texts: list[str]
    class_ids: dict[str, int]
    hostile: list[Hostile]
    embedded: bool = True


def make_traffic(model: str, max_length: int, embedded: bool) -> Traffic:
    """Texts with Hugging Face's class ids, computed one by one, and every hostile request but the largest.

    The empty text is not sent; its class id is the expected one for a text of blanks.
    """
    from build_scripts.convert.checkpoint import load
    from build_scripts.convert.gate_texts import HOSTILE_TEXTS
    from build_scripts.convert.parity import reference
    from build_scripts.releases.default_model import demo_checkpoint, headlines
    from build_scripts.releases.hub import resolve

    checkpoint = load(resolve(model) if model else demo_checkpoint(), max_length)
    corpus = (DATA / "perf_corpus.txt").read_text(encoding="utf-8").splitlines()
    foreign = CALIBRATION.read_text(encoding="utf-8").splitlines()
    texts = [*(text for _, text in headlines("heldout")), *corpus[:200], *foreign, *HOSTILE_TEXTS, *noise(1000)]
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    class_ids = reference(checkpoint, [*texts, ""]).probabilities.argmax(1).tolist()
    vocab_size = checkpoint.model.get_input_embeddings().num_embeddings
    hostile = [r for r in hostile_requests(vocab_size, max_length, 64) if len(r.body) < 8 << 20]
    return Traffic(texts, dict(zip([*texts, ""], class_ids)), hostile, embedded)


def noise(count: int) -> list[str]:
    """Random Unicode without surrogates, short and reproducible."""
    rng = random.Random(11)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x600, 0x700), (0x4E00, 0x9FFF), (0x1F300, 0x1F650)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 40))) for _ in range(count)]


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
        right = bad.is_answered_by(status, body, embedded=traffic.embedded)
        judge(findings, bad.name, bad.path, status, body, right, "hostile, refused")
        return
    texts = rng.sample(traffic.texts, rng.randint(2, 12) if kind < HOSTILE_SHARE + LIST_SHARE else 1)
    path = rng.choice((GENERATE, INFER))
    request = {"TEXT": texts} if path == GENERATE else infer_body(texts)
    status, body = send(connection, path, json.dumps(request).encode(), {})
    right = status == 200 and class_ids(body) == [traffic.class_ids[text] for text in texts]
    judge(findings, repr(texts)[:200], path, status, body, right, "valid, answered", len(texts))


def class_ids(body: str | bytes) -> list[int] | None:
    """Class ids of an answer of either endpoint; None if it has none."""
    try:
        answer = json.loads(body)
        if "outputs" in answer:
            return next(output["data"] for output in answer["outputs"] if output["name"] == "CLASS_ID")
        found = answer["CLASS_ID"]
        return found if isinstance(found, list) else [found]
    except (ValueError, KeyError, TypeError, StopIteration):
        return None


def send(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, response.read().decode("utf-8", "replace")


def judge(
    findings: Findings, name: str, path: str, status: int, body: str, right: bool, good: str, texts: int = 0
) -> None:
    """Note a verdict. `generate` says 400 where `infer` says 500 or 503 (Triton 2.51), so its 400 counts as failed.

    Findings of one kind share endpoint, status and text without numbers.
    """
    servers = status >= 500 or (path == GENERATE and status == 400)
    if right:
        findings.note(good, texts=texts)
    elif servers and time.monotonic() < findings.window_until:
        findings.note("lost in a recovery")
    else:
        subject = "a valid request" if texts else name
        said = re.sub(r"[\d.]+", "#", body[:80]) if status != 200 else ""
        example = f"{name}: {status} {body[:200]}"
        findings.note("failed" if servers else "wrong", example, kind=f"{subject}, {path}, {status} {said}")
