"""Triton's HTTP side as the supervisor sees it: an inference is answered, refused, fails, or never ends."""

import json
import threading

from tests.support.http_stand_in import Reply, Request, StandIn

ANSWERS = {
    200: {"outputs": [{"name": "CLASS_ID", "data": [3]}]},
    500: {"error": "stub is not healthy"},
    503: {"error": "overload: 128 requests wait"},
}


class Frontend(StandIn):
    """statuses: of the answers to inferences in turn, the last one repeated; None is no answer. of_models: the status
    of one model's answers.

    successes: the count in the statistics; with `busy`, each request adds one.
    executions: the classifier's batches, of one text and `seconds` each; with `computes`, each look adds one.
    """

    def __init__(self, *statuses: int | None, **of_models: int | None):
        self.statuses = list(statuses)
        self.of_models = of_models
        self.asked, self.successes, self.busy = 0, 5, False
        self.executions, self.seconds, self.computes = 5, 0.001, False
        self.closing = threading.Event()
        super().__init__(self.reply)

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        super().__exit__(*error)

    def reply(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply(200, json.dumps(self.statistics()).encode())
        _, _, _, model, *_ = request.path.split("/")
        status = self.of_models[model] if model in self.of_models else self.next_status()
        if status is None:
            self.closing.wait()
            return Reply(503)
        return Reply(status, json.dumps(ANSWERS[status]).encode())

    def next_status(self) -> int | None:
        self.asked += 1
        self.successes += self.busy
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def statistics(self) -> dict:
        answered = {"inference_stats": {"success": {"count": self.successes}}}
        ensembles = [{"name": name, **answered} for name in ("text_classifier", "sentiment", "topic")]
        self.executions += self.computes
        times = {"count": self.executions, "ns": int(self.executions * self.seconds * 1e9)}
        counts = {"execution_count": self.executions, "inference_count": self.executions}
        classifier = {"name": "classifier", **counts, "batch_stats": [{"batch_size": 1, "compute_infer": times}]}
        return {"model_stats": [*ensembles, classifier, {"name": "tokenizer", **counts, "batch_stats": []}]}
