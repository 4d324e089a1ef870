"""A service that answers every request, and remembers them: the other end of the load client."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder(ThreadingHTTPServer):
    """Answers every POST after a moment; keeps the bodies, and how many were worked on at once.

    meeting: the first requests are answered once so many have come, so that a busy machine cannot keep them apart.
    """

    def __init__(self, status: int = 200, meeting: int = 1):
        self.bodies: list[str] = []
        all_came = threading.Event()
        self.at_once = self.most_at_once = self.connections = 0
        self.lock = threading.Lock()
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                recorder.connections += 1

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                with recorder.lock:
                    recorder.bodies.append(body)
                    recorder.at_once += 1
                    recorder.most_at_once = max(recorder.most_at_once, recorder.at_once)
                    if len(recorder.bodies) >= meeting:
                        all_came.set()
                all_came.wait(10)
                time.sleep(0.01)
                with recorder.lock:
                    recorder.at_once -= 1
                self.send_response(status)
                # As Triton does before the length of an answer with binary tensors: it ends the same.
                self.send_header("Inference-Header-Content-Length", "900")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
