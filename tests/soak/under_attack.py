"""Run each attack beside ordinary traffic; report what became of both, and of the server."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from tqdm import tqdm

from build_scripts.core.options import Address
from build_scripts.serving.keep.inference import probe
from tests.soak.attacks import ATTACKS, Attack, Target
from tests.soak.overload import resident
from tests.soak.traffic import Findings, Traffic, clients

# Deadline for the service to answer again after a fault. Generous: a start takes as long as the machine needs, and the
# report states the times.
RECOVERY_LIMIT_S = 60.0
# Extra time that an attack may take beyond its share.
PATIENCE_S = 90.0


@dataclass
class Attacked:
    """outcomes: of the attack's requests. seconds: longest time without an answer after the attack's end.

    memory_mib: of the server, before the attack and after it. Reported and not judged: the container's limit bounds it.
    """

    attack: Attack
    outcomes: Counter
    seconds: float
    memory_mib: tuple[float, float]
    restarted: bool

    @property
    def survived(self) -> bool:
        """No wrong answer, and the service answers in time. Only an attack with `may_restart` may drop clients."""
        if self.outcomes["wrong"] or self.seconds > RECOVERY_LIMIT_S:
            return False
        return self.attack.may_restart or not (self.outcomes["hung"] or self.restarted)


def attack_all(
    supervisor: int, address: Address, traffic: Traffic, findings: Findings, seconds: float, progress: tqdm
) -> list[Attacked]:
    """Every attack, one after the other, about `seconds` together. supervisor: process id of `serve`."""
    text = min(traffic.texts, key=len)
    target = Target(address, text, traffic.class_ids[text], traffic.class_ids[""])
    found, share = [], seconds / len(ATTACKS)
    for attack in ATTACKS:
        found.append(attack_one(attack, target, supervisor, traffic, findings, share))
        progress.update(share)
    return found


def attack_one(
    attack: Attack, target: Target, supervisor: int, traffic: Traffic, findings: Findings, seconds: float
) -> Attacked:
    """Run one attack beside ordinary traffic, then wait until the service answers.

    Only an attack with `may_restart` excuses lost requests.
    """
    server, before = server_of(supervisor), resident(supervisor)
    if attack.may_restart:
        findings.window_until = time.monotonic() + seconds + PATIENCE_S
    with clients(target.address, traffic, findings):
        try:
            outcomes = attack.run(target, seconds)
        except OSError as error:  # a finding; the soak goes on
            outcomes = Counter()
            findings.note("failed", f"{attack.name}: {error!r}")
    silent = silence(target)
    restarted = server_of(supervisor) != server
    if restarted:
        findings.recoveries.append((attack.name, silent))
    findings.window_until = 0.0
    return Attacked(attack, outcomes, silent, (before, resident(supervisor)), restarted)


def silence(target: Target) -> float:
    """Wait for an answer, RECOVERY_LIMIT_S at most; the seconds that it took."""
    began = time.monotonic()
    while not probe(target.address.http_url, 1.0).healthy and time.monotonic() - began <= RECOVERY_LIMIT_S:
        time.sleep(0.05)
    return time.monotonic() - began


def server_of(supervisor: int) -> int | None:
    """Process id of tritonserver; None between two servers."""
    for one in psutil.Process(supervisor).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "tritonserver":
                return one.pid
    return None


def attack_report(attacked: list[Attacked]) -> list[str]:
    """Markdown lines."""
    kinds = ("answered", "refused", "closed", "hung", "wrong")
    return [
        f"| attack | {' | '.join(kinds)} | silence after it, s | memory before and after, MiB | |",
        f"|---|{'---|' * len(kinds)}---|---|---|",
        *(
            f"| {one.attack.name} | {' | '.join(str(one.outcomes[kind]) for kind in kinds)} | {one.seconds:.1f} | "
            f"{one.memory_mib[0]:.0f}, {one.memory_mib[1]:.0f} | {'restarted' if one.restarted else ''} |"
            for one in attacked
        ),
    ]
