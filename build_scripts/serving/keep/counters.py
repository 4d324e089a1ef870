"""What a running tritonserver has counted: requests answered and batches computed."""

from __future__ import annotations

import http.client
import json
from typing import NamedTuple

from build_scripts.core.names import CLASSIFIER, ENSEMBLE, is_cached, is_model_or_candidate
from build_scripts.serving.keep.local_http import open_url


def success_count(url: str, name: str = ENSEMBLE) -> int:
    """Requests of a classifier that were computed since the start; -1 if the server does not say.

    Answers from the response cache do not count: they come without the models.
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
