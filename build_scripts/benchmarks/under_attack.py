"""The soak among attackers: each attack beside ordinary traffic, what became of it, of the traffic and of memory."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from tqdm import tqdm

from build_scripts.benchmarks.attacks import ATTACKS, Attack, Target
from build_scripts.benchmarks.overload import resident
from build_scripts.benchmarks.traffic import Findings, Traffic
from build_scripts.serving.health import probe
from build_scripts.settings import Address

# Within so many seconds of whatever ended it, the service must answer again.
RECOVERY_LIMIT_S = 10.0
# An attack that may end the server is let go on for so long at most, beyond its share of the time.
PATIENCE_S = 90.0


@dataclass
class Attacked:
    """What became of what an attack sent. seconds: until the service answered again, after its end.

    memory_mib: of the server, before it and once the service answered again.
    """

    attack: Attack
    outcomes: Counter
    seconds: float
    memory_mib: tuple[float, float]
    restarted: bool

    @property
    def survived(self) -> bool:
        """Nothing wrong, nobody left waiting. A server that may end leaves who waits for it, but not for long."""
        if self.outcomes["wrong"] or self.seconds > RECOVERY_LIMIT_S:
            return False
        return self.attack.may_restart or not (self.outcomes["hung"] or self.restarted)


def attack_all(
    supervisor: int, address: Address, traffic: Traffic, findings: Findings, seconds: float, progress: tqdm
) -> list[Attacked]:
    """Every attack, one after the other, in about so many seconds. supervisor: the process of `serve`."""
    text = min(traffic.texts, key=len)
    target = Target(address, text, traffic.class_ids[text], traffic.class_ids[""])
    found = []
    for attack in ATTACKS:
        found.append(attack_one(attack, target, supervisor, findings, seconds / len(ATTACKS)))
        progress.update(seconds / len(ATTACKS))
    return found


def attack_one(attack: Attack, target: Target, supervisor: int, findings: Findings, seconds: float) -> Attacked:
    """Run it, then wait until the service answers again. Only one that may end the server excuses lost requests."""
    memory, server = resident(supervisor), server_of(supervisor)
    if attack.may_restart:
        findings.window_until = time.monotonic() + seconds + PATIENCE_S
    outcomes = attack.run(target, seconds)
    ended = time.monotonic()
    while time.monotonic() - ended < 2 * RECOVERY_LIMIT_S and not probe(target.address.http_url, 1.0).well:
        time.sleep(0.05)
    took, restarted = time.monotonic() - ended, server_of(supervisor) != server
    if restarted:
        findings.recoveries.append((attack.name, took))
    findings.window_until = min(findings.window_until, time.monotonic() + 0.5)
    return Attacked(attack, outcomes, took, (memory, resident(supervisor)), restarted)


def server_of(supervisor: int) -> int | None:
    """The process id of tritonserver; None while there is none."""
    for one in psutil.Process(supervisor).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "tritonserver":
                return one.pid
    return None


def attack_report(attacked: list[Attacked]) -> list[str]:
    """Markdown lines."""
    kinds = ("answered", "refused", "closed", "hung", "wrong")
    return [
        f"| attack | {' | '.join(kinds)} | service well after, s | memory before and after, MiB | |",
        f"|---|{'---|' * len(kinds)}---|---|---|",
        *(
            f"| {one.attack.name} | {' | '.join(str(one.outcomes[kind]) for kind in kinds)} | {one.seconds:.1f} | "
            f"{one.memory_mib[0]:.0f}, {one.memory_mib[1]:.0f} | {'restarted' if one.restarted else ''} |"
            for one in attacked
        ),
    ]
