"""Decide whether a server that does not answer hangs or works.

A server hangs if nothing was answered, no counter moved and no process of it got or awaited the CPU for IDLE_LIMIT_S.
One that computes is left alone until the largest request that is admitted must have been computed, which only a server
in an endless loop exceeds. Nothing here reads a clock or a process.
"""

from __future__ import annotations

from enum import IntEnum

from build_scripts.core.names import Models, is_model_or_candidate
from build_scripts.core.options import LONGEST_MAX_LENGTH
from build_scripts.serving.keep.processes import STOPPED, Processes, worked


class Work(IntEnum):
    """What the processes behind a classifier did, from nothing to its own computation."""

    NONE = 0
    FRONTEND = 1
    MODEL = 2


# Two looks at a silent server.
IDLE_LIMIT_S = 1.6
# tritonserver's own work on a request, such as unpacking 60 MiB of JSON, takes seconds at most.
FRONTEND_LIMIT_S = 10.0
# Texts of the largest request that is admitted: max_batch_size in text_classifier/config.pbtxt.
LARGEST_REQUEST_TEXTS = 64
# The largest request may cost this many times what its tokens cost on average: attention grows with the square.
MARGIN = 4.0
# Bounds of the time for the largest request, in seconds. The upper one also holds before anything was counted.
SHORTEST_LIMIT_S, LONGEST_LIMIT_S = 60.0, 600.0


def limit_for_largest_request(seconds_per_token: float | None) -> float:
    """Seconds of computing after which a classifier must have finished something."""
    if seconds_per_token is None:
        return LONGEST_LIMIT_S
    needed = MARGIN * LARGEST_REQUEST_TEXTS * LONGEST_MAX_LENGTH * seconds_per_token
    return min(max(needed, SHORTEST_LIMIT_S), LONGEST_LIMIT_S)


class Suspicion:
    """How long one classifier has answered nothing, by what its processes did in that time."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(Work, 0.0)

    def exceeds(self, work: Work, seconds: float, largest_request_s: float) -> bool:
        """Add a period. Returns whether the server has hung for too long by now."""
        self.seconds[work] += seconds
        for less in Work:
            if less < work:  # a server that works now was not idle for good
                self.seconds[less] = 0.0
        limits = {Work.NONE: IDLE_LIMIT_S, Work.FRONTEND: FRONTEND_LIMIT_S, Work.MODEL: largest_request_s}
        return self.seconds[work] >= limits[work]


def model_without_process(name: str, processes: Processes, *, embedded: bool) -> str | None:
    """The model of a classifier whose process was killed. embedded: see `work_of`."""
    own = Models(name)
    for model in (own.tokenizer, own.classifier) if embedded else (own.tokenizer,):
        if not any(is_model_or_candidate(one.model, model) for one in processes.values()):
            return model
    return None


def work_of(
    name: str,
    tritonserver: int,
    before: Processes,
    after: Processes,
    period_s: float,
    *,
    refuses: bool,
    embedded: bool,
) -> tuple[Work, float]:
    """What the processes behind a classifier did in a period, and for how many seconds of it.

    On a busy machine a process that waits for the CPU works, and only the CPU time that it gets counts as seconds.
    refuses: the tokenizer and tritonserver are busy with refusals then, so only the classifier's process counts.
    embedded: this project's pytorch backend computes in a separate process, NVIDIA's inside tritonserver.
    """
    own = Models(name)
    classifiers = {pid for pid, one in after.items() if is_model_or_candidate(one.model, own.classifier)}
    tokenizers = {pid for pid, one in after.items() if is_model_or_candidate(one.model, own.tokenizer)}
    frontend = {pid for pid, one in after.items() if not one.model}
    if model_without_process(name, after, embedded=embedded):  # tritonserver may still answer from its cache
        return Work.NONE, period_s
    if any(after[pid].state == STOPPED for pid in classifiers | tokenizers | {tritonserver} & set(after)):
        return Work.NONE, period_s
    models = classifiers if embedded else frontend
    if not refuses:
        models = models | tokenizers
    working = {pid for pid, one in after.items() if worked(one, before.get(pid), period_s)}
    if working & models:
        runnable = all(after[pid].is_runnable for pid in working & models)
        used_s = sum(after[pid].cpu_s - (before[pid].cpu_s if pid in before else 0.0) for pid in working & models)
        return Work.MODEL, min(period_s, used_s) if runnable else period_s
    if working & frontend and not refuses:
        return Work.FRONTEND, period_s
    return Work.NONE, period_s
