"""The soak among attackers: each attack beside ordinary traffic, what became of it, of the traffic and of memory.

Memory must be back near where it was before the first attack, if need be by a restart.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass

import psutil
from tqdm import tqdm

from build_scripts.core.options import Address
from build_scripts.serving.keep.health import probe
from build_scripts.serving.keep.memory import GROWTH_BYTES, HOLD_S, REQUEST_BYTES, private_bytes
from tests.soak.attacks import ATTACKS, Attack, Target
from tests.soak.overload import resident
from tests.soak.traffic import CLIENTS, Findings, Traffic, clients

# Within so many seconds of whatever ended it, the service must answer again.
RECOVERY_LIMIT_S = 10.0
# Within so many more, memory must be back: what the server may hold on to, it may for HOLD_S.
SETTLE_LIMIT_S = 3 * HOLD_S
# What tritonserver alone may keep of the attacks: its watch ends it for a tenth more, and counts from less.
HELD_BYTES = GROWTH_BYTES * 9 // 10
# An attack that may end the server is let go on for so long at most, beyond its share of the time.
PATIENCE_S = 90.0


@dataclass
class Attacked:
    """What became of what an attack sent. seconds: the longest time without an answer after its end.

    memory_mib: of the server, before the first attack and once it was back near that, or SETTLE_LIMIT_S had passed.
    """

    attack: Attack
    outcomes: Counter
    seconds: float
    memory_mib: tuple[float, float]
    restarted: bool

    @property
    def survived(self) -> bool:
        """Nothing wrong, nobody left waiting, no memory kept. One that may end leaves who waits, but not for long."""
        if self.outcomes["wrong"] or self.seconds > RECOVERY_LIMIT_S or not is_back(*self.memory_mib):
            return False
        return self.attack.may_restart or not (self.outcomes["hung"] or self.restarted)


def attack_all(
    supervisor: int, address: Address, traffic: Traffic, findings: Findings, seconds: float, progress: tqdm
) -> list[Attacked]:
    """Every attack, one after the other, in about so many seconds. supervisor: the process of `serve`."""
    text = min(traffic.texts, key=len)
    target = Target(address, text, traffic.class_ids[text], traffic.class_ids[""])
    found, share, memory, held = [], seconds / len(ATTACKS), resident(supervisor), held_bytes(supervisor)
    for attack in ATTACKS:
        found.append(attack_one(attack, target, supervisor, traffic, findings, share, memory, held))
        progress.update(share)
    return found


def attack_one(
    attack: Attack,
    target: Target,
    supervisor: int,
    traffic: Traffic,
    findings: Findings,
    seconds: float,
    memory: float,
    held: int,
) -> Attacked:
    """Run it beside ordinary traffic, then wait until the service answers again.

    Only one that may end the server excuses lost requests. For each request that waits the watch of memory lets
    tritonserver hold more; so nobody sends while it is waited for, or it would end the server at any time later.

    memory: MiB of the server before the first attack. held: bytes of tritonserver alone, then.
    """
    server = server_of(supervisor)
    if attack.may_restart:
        findings.window_until = time.monotonic() + seconds + PATIENCE_S
    with clients(target.address, traffic, findings):
        try:
            outcomes = attack.run(target, seconds)
        except OSError as error:  # not the end of the soak; and the command line takes a broken pipe for one of its own
            outcomes = Counter()
            findings.note("failed", f"{attack.name}: {error!r}")
    silent, after = settle(target, supervisor, memory, held)
    restarted = server_of(supervisor) != server
    if restarted:
        findings.recoveries.append((attack.name, silent))
    findings.window_until = 0.0  # before the next attack's traffic
    return Attacked(attack, outcomes, silent, (memory, after), restarted)


def settle(target: Target, supervisor: int, memory: float, held: int) -> tuple[float, float]:
    """Wait until the service answers and its memory is back, for a while; the longest silence in s, and MiB by then.

    While tritonserver alone holds more than it may, its watch can still end it.
    """
    began = answered = time.monotonic()
    silent = 0.0
    while True:
        after = resident(supervisor)
        settled = is_back(memory, after) and held_bytes(supervisor) - held < HELD_BYTES
        # After the look at memory: a server that is ended at this moment holds nothing, and answered a moment ago.
        well, now = probe(target.address.http_url, 1.0).well, time.monotonic()
        silent = max(silent, now - answered)
        answered = now if well else answered
        if well and (settled or now - began > SETTLE_LIMIT_S):
            return silent, after
        if now - answered > 2 * RECOVERY_LIMIT_S:
            return silent, after
        time.sleep(0.05)


def is_back(before: float, after: float) -> bool:
    """MiB of the whole server. It may keep as much as is left to tritonserver, beside the clients of the soak."""
    return after - before < (GROWTH_BYTES + CLIENTS * REQUEST_BYTES) / 2**20


def server_of(supervisor: int) -> int | None:
    """The process id of tritonserver; None while there is none."""
    for one in psutil.Process(supervisor).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() == "tritonserver":
                return one.pid
    return None


def held_bytes(supervisor: int) -> int:
    """What tritonserver has in memory for itself alone; 0 while there is none."""
    server = server_of(supervisor)
    return 0 if server is None else private_bytes(server)


def attack_report(attacked: list[Attacked]) -> list[str]:
    """Markdown lines."""
    kinds = ("answered", "refused", "closed", "hung", "wrong")
    return [
        f"| attack | {' | '.join(kinds)} | longest silence after it, s | memory before all and after, MiB | |",
        f"|---|{'---|' * len(kinds)}---|---|---|",
        *(
            f"| {one.attack.name} | {' | '.join(str(one.outcomes[kind]) for kind in kinds)} | {one.seconds:.1f} | "
            f"{one.memory_mib[0]:.0f}, {one.memory_mib[1]:.0f} | {'restarted' if one.restarted else ''} |"
            for one in attacked
        ),
    ]
