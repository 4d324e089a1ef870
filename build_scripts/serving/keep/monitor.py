"""What a running tritonserver shows of itself: its processes, what they compute, what it answered, its log."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
from pathlib import Path
from typing import NamedTuple

import psutil

from build_scripts.core.names import CLASSIFIER, ENSEMBLE, is_cached, is_model_or_candidate
from build_scripts.serving.keep.local_http import open_url
from build_scripts.serving.start.tritonserver import TritonProcess


class Worker(NamedTuple):
    """A process of the server. model: that its stub runs, "" for tritonserver itself and whatever else it started."""

    pid: int
    model: str


# How lines of Triton's log tell why a model does not load.
REASONS = ("failed to load '", "Failed to initialize Python stub")

# Some are held by the Python-based backend, out of Triton's queue.
WAITING = re.compile(r"^(?:nv_inference_pending_request_count|text_classifier_held_requests)(?:{.*})? ([\d.e+]+)", re.M)

CpuSeconds = dict[Worker, float]


def broken_process(server: TritonProcess) -> str | None:
    """A process of the server that was killed or stopped, in words.

    Triton does not collect the dead ones, so they remain as zombies. For an instant, so does one that is unloaded,
    which is why inference is asked too.
    """
    states = {psutil.STATUS_ZOMBIE: "was killed", psutil.STATUS_STOPPED: "is stopped"}
    with contextlib.suppress(psutil.NoSuchProcess):
        tritonserver = psutil.Process(server.process.pid)
        for process in [tritonserver, *tritonserver.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if (state := process.status()) in states:
                    return f"process {process.pid} of the server {states[state]}"
    return None


def cpu_seconds(server: TritonProcess) -> CpuSeconds:
    """CPU seconds used so far by each process of the server."""
    seconds: CpuSeconds = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        tritonserver = psutil.Process(server.process.pid)
        seconds[Worker(tritonserver.pid, "")] = sum(tritonserver.cpu_times()[:2])
        for child in tritonserver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds[Worker(child.pid, model_of(child))] = sum(child.cpu_times()[:2])
    return seconds


def model_of(stub: psutil.Process) -> str:
    """The model that a stub process runs; its first argument is <repository>/<model>/<version>/<file>."""
    path = Path(*stub.cmdline()[1:2])
    return path.parts[-3] if len(path.parts) >= 3 else ""


def success_count(url: str, name: str = ENSEMBLE) -> int:
    """How many requests of a classifier were computed since the start; -1 if the server does not say.

    An answer from the response cache tells nothing of the models, however dead they are.
    """
    try:
        with open_url(f"{url}/v2/models/stats", timeout_s=0.5) as response:
            models = json.load(response)["model_stats"]
        count = 0
        for model in models:
            if model["name"] == name:
                count += int(model["inference_stats"]["success"]["count"])
            elif is_cached(model["name"], name):
                count -= int(model["inference_stats"]["cache_hit"]["count"])
        return count
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return -1


class Executions(NamedTuple):
    """What the classifiers have computed since the start. seconds_a_text: of the batches' time."""

    batches: int
    seconds_a_text: float


def executions(url: str, classifier: str = CLASSIFIER) -> Executions | None:
    """None if the server does not say. During a release there are two classifiers."""
    try:
        with open_url(f"{url}/v2/models/stats", timeout_s=0.5) as response:
            models = json.load(response)["model_stats"]
        models = [one for one in models if is_model_or_candidate(one["name"], classifier)]
        batches = sum(int(one["execution_count"]) for one in models)
        texts = sum(int(one["inference_count"]) for one in models)
        # For each size, of its batches: an inference's own time is counted once for each request of its batch.
        sizes = [size["compute_infer"] for one in models for size in one["batch_stats"]]
        seconds = sum(int(size["ns"]) for size in sizes) / 1e9
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    return Executions(batches, seconds / max(texts, 1))


def waiting_requests(metrics_address: str) -> int | None:
    """How many wait, at the ensemble and at each of its models; None if the server does not say."""
    try:
        with open_url(f"http://{metrics_address}/metrics", timeout_s=0.2) as response:
            found = WAITING.findall(response.read(1 << 20).decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException):
        return None
    return sum(map(int, map(float, found))) if found else None


def last_error(log: Path) -> str:
    """The most telling line of a server's log, or its last: a container's log is gone with the container."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith("error:") or any(words in line for words in REASONS)]
        if lines:
            return f"{(telling or lines)[-1]} (all of it: {log})"
    return f"see {log}"
