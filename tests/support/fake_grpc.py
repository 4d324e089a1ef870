"""Triton's gRPC side as a client sees it: requests are answered, or fail in the scripted way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

OVERLOAD = grpc.StatusCode.UNAVAILABLE, "overload: 128 requests wait; try again later"


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """failures: status and message of the next requests, None for an answer; later requests are all answered.

    texts: of each request that was answered. best: what each text is answered, as "probability:class id:label".
    """

    def __init__(self, *failures: tuple[grpc.StatusCode, str] | None, best: str = "0.9000:2:sports"):
        self.failures = list(failures)
        self.best = best
        self.asked = 0
        self.texts: list[int] = []

    def ModelInfer(self, request, context):
        self.asked += 1
        if self.failures and (failure := self.failures.pop(0)):
            context.abort(*failure)
        count = request.inputs[0].shape[0]
        self.texts.append(count)
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        class_id = int(self.best.split(":")[1])
        best = np.array([[self.best.encode()]] * count, dtype=np.object_)
        for name, kind, content in (
            ("CLASS_ID", "INT64", np.full((count, 1), class_id, dtype=np.int64).tobytes()),
            ("PROBABILITIES", "BYTES", serialize_byte_tensor(best).item()),
        ):
            response.outputs.add(name=name, datatype=kind, shape=[count, 1])
            response.raw_output_contents.append(content)
        return response


@contextlib.contextmanager
def listening(triton: FakeTriton, certificate: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """The address at which the fake answers, with TLS if there is a certificate."""
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    if certificate and key:
        pair = key.read_bytes(), certificate.read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
