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
    """statuses: of the answers to inferences, in order, the last one repeated; None is no answer. of_models: the status
    of one model's answers. successes: the count in the statistics; with `busy`, each request adds one.
    """

    def __init__(self, *statuses: int | None, **of_models: int | None):
        self.statuses = list(statuses)
        self.of_models = of_models
        self.asked, self.successes, self.busy = 0, 5, False
        self.closing = threading.Event()
        super().__init__(self.reply)

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        super().__exit__(*error)

    def reply(self, request: Request) -> Reply:
        _, _, _, model, *_ = request.path.split("/")
        if request.method == "GET":
            return Reply(200, json.dumps(self.statistics(model)).encode())
        status = self.of_models[model] if model in self.of_models else self.next_status()
        if status is None:
            self.closing.wait()
            return Reply(503)
        return Reply(status, json.dumps(ANSWERS[status]).encode())

    def next_status(self) -> int | None:
        self.asked += 1
        self.successes += self.busy
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def statistics(self, model: str) -> dict:
        return {"model_stats": [{"name": model, "inference_stats": {"success": {"count": self.successes}}}]}
