"""What a running tritonserver has counted, from its metrics page.

Triton serves that page by a thread that no inference and no body blocks.
"""

from __future__ import annotations

from build_scripts.core.names import Models, is_model_or_candidate
from build_scripts.serving.keep.local_http import exchange

READ_TIMEOUT_S = 0.5
SUCCESSES, COMPUTE_US = "nv_inference_request_success", "nv_inference_compute_infer_duration_us"
TOKENS, REFUSALS = "text_classifier_tokens_sum", "text_classifier_refused_requests_total"


class Counters:
    """values: (series, model) -> count since the model was loaded. Of REFUSALS only those for overload."""

    def __init__(self, values: dict[tuple[str, str], float]):
        self.values = values

    def total(self, series: str, model: str) -> float:
        """Of a model and of the candidate that a release loads beside it."""
        return sum(
            value for (one, of), value in self.values.items() if one == series and is_model_or_candidate(of, model)
        )

    def answered(self, name: str) -> float:
        """Requests that a classifier computed. Answers from the response cache come without it and do not count."""
        return self.total(SUCCESSES, Models(name).classifier)

    def refused(self, name: str) -> float:
        return self.total(REFUSALS, Models(name).tokenizer)

    def seconds_per_token(self, name: str) -> float | None:
        """Computing time of a token. Triton counts a batch's time once for each request, so this is an upper bound."""
        tokens = self.total(TOKENS, Models(name).tokenizer)
        return self.total(COMPUTE_US, Models(name).classifier) / 1e6 / tokens if tokens else None


def read_counters(metrics_address: str) -> Counters | None:
    """None if the server does not say."""
    try:
        status, page = exchange(f"http://{metrics_address}/metrics", timeout_s=READ_TIMEOUT_S)
    except (OSError, ValueError):
        return None
    return parse(page.decode("utf-8", "replace")) if status == 200 else None


def parse(page: str) -> Counters:
    values: dict[tuple[str, str], float] = {}
    for line in page.splitlines():
        series, brace, rest = line.partition("{")
        if not brace or series not in (SUCCESSES, COMPUTE_US, TOKENS, REFUSALS):
            continue
        labels, _, value = rest.rpartition("} ")
        if series == REFUSALS and 'reason="overload"' not in labels:
            continue
        key = series, labels.partition('model="')[2].partition('"')[0]
        values[key] = values.get(key, 0.0) + float(value)
    return Counters(values)
