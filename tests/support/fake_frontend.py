"""Triton's HTTP side as the supervisor sees it: an inference is answered, refused, fails, or never ends."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    200: {"outputs": [{"name": "CLASS_ID", "data": [3]}]},
    500: {"error": "stub is not healthy"},
    503: {"error": "overload: 128 requests wait"},
}


class Frontend(ThreadingHTTPServer):
    """statuses: of the answers to inferences in turn, the last one for ever; None is no answer. of_models: that of one
    model's, for ever.

    successes: what the statistics count, unless `busy`: then another is answered whenever it is asked.
    executions: the classifier's batches, of one text and `seconds` each, or one more at each look: `computes`.
    """

    def __init__(self, *statuses: int | None, **of_models: int | None):
        self.statuses = list(statuses)
        self.of_models = of_models
        self.asked, self.successes, self.busy = 0, 5, False
        self.executions, self.seconds, self.computes = 5, 0.001, False
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def next_status(self) -> int | None:
        self.asked += 1
        self.successes += self.busy
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


class Handler(BaseHTTPRequestHandler):
    server: Frontend

    def do_GET(self):
        answered = {"inference_stats": {"success": {"count": self.server.successes}}}
        ensembles = [{"name": name, **answered} for name in ("text_classifier", "sentiment", "topic")]
        front = self.server
        front.executions += front.computes
        times = {"count": front.executions, "ns": int(front.executions * front.seconds * 1e9)}
        counts = {"execution_count": front.executions, "inference_count": front.executions}
        classifier = {"name": "classifier", **counts, "batch_stats": [{"batch_size": 1, "compute_infer": times}]}
        self.reply(200, {"model_stats": [*ensembles, classifier, {"name": "tokenizer", **counts, "batch_stats": []}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        _, _, _, model, *_ = self.path.split("/")
        status = self.server.of_models[model] if model in self.server.of_models else self.server.next_status()
        if status is None:
            self.server.closing.wait()
        else:
            self.reply(status, ANSWERS[status])

    def reply(self, status: int, answer: dict) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
