"""What the proxies pass, and what they stop before Triton sees it. Both are real, and configured as shipped."""

from __future__ import annotations

import gzip
import json
import sys

import pytest

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.paths import PROJECT
from tests.deploy.conftest import await_well
from tests.support.balancers import HOST, INFER, PORT, TEXT_REQUEST, proxy
from tests.support.containers import run
from tests.support.deploy_tools import need
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.server
BODY = json.dumps(infer_body(["goal"]))


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def front(request, start, network, tmp_path_factory):
    need("haproxy", "nginx-light", "curl", "openssl")
    replica = start(11)
    await_well(replica)
    with proxy(request.param, network, tmp_path_factory.mktemp(request.param)) as running:
        yield running
    replica.remove()


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_inference_health_and_metadata_pass(front, version):
    path, arguments = TEXT_REQUEST
    status, body = front.curl(path, *arguments, version=version)
    assert (status, json.loads(body)["CLASS_ID"]) == (200, 7)
    assert front.curl(INFER, "-d", BODY, version=version)[0] == 200
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/text_classifier/ready"):
        assert front.curl(path, version=version)[0] == 200, path
    for path in ("/v2/models/text_classifier", "/v2/models/tokenizer/config", "/v2/models/classifier/versions/1"):
        assert json.loads(front.curl(path, version=version)[1])["name"], path


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/classifier/unload",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
        "/metrics",
        "/",
        "//v2/repository/index",
        "/v2/./repository/index",
        "/v2/health/../repository/index",
        "/v2/repository/../health/live",
        "/v2/%72epository/index",
        "/V2/repository/index",
        "/v2/models/text_classifier/../../repository/index",
        "/inference.GRPCInferenceService/RepositoryIndex",
    ],
)
def test_other_paths_are_404(front, path):
    assert front.curl(path)[0] == 404
    assert front.curl(path, "-d", "{}")[0] == 404


def test_compressed_bodies_are_refused(front, tmp_path):
    (tmp_path / "body").write_bytes(gzip.compress(BODY.encode()))
    compressed = ("--data-binary", f"@{tmp_path}/body")
    for encoding in ("gzip", "deflate", "GZIP", "identity, gzip"):
        assert front.curl(INFER, *compressed, "-H", f"Content-Encoding: {encoding}")[0] == 415, encoding


def test_body_needs_a_length_within_the_limit(front, tmp_path):
    assert front.curl(INFER, "-d", BODY, "-H", "Transfer-Encoding: chunked")[0] == 411
    # curl asks (Expect: 100-continue) before it sends a large body. Without that, the answer may be lost.
    (tmp_path / "large").write_bytes(b" " * (9 << 20))
    assert front.curl(INFER, "--data-binary", f"@{tmp_path}/large")[0] == 413
    texts = ["word " * 24_000] * 8
    (tmp_path / "allowed").write_text(json.dumps({"TEXT": texts}), encoding="utf-8")
    status, body = front.curl("/v2/models/text_classifier/generate", "--data-binary", f"@{tmp_path}/allowed")
    assert (status, len(json.loads(body)["CLASS_ID"])) == (200, 8)


def grpc(front, code: str) -> str:
    """Python with `client`, connected through the proxy; returns what it prints."""
    certificate = front.directory / "certificate.pem"
    setup = f"""
import grpc, numpy as np, tritonclient.grpc as triton
from pathlib import Path
credentials = grpc.ssl_channel_credentials(Path({str(certificate)!r}).read_bytes())
client = triton.InferenceServerClient("{HOST}:{PORT}", ssl=True, creds=credentials)
def infer(text, **options):
    tensor = triton.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
    return client.infer("text_classifier", [tensor], client_timeout={HANG_S}, **options).as_numpy("CLASS_ID")[0, 0]
def refused(call):
    try:
        return f"answered: {{call()}}"
    except Exception as error:
        return f"refused: {{error}}"
"""
    return run(*front.network.enter(front.network.balancer), sys.executable, "-c", setup + code, cwd=PROJECT).stdout


def test_grpc_passes_inference_health_and_metadata_only(front):
    code = """
print(infer(b"Midfielder scores twice as champions win away"))
print(client.is_server_ready(), client.is_model_ready("classifier"))
print(client.get_model_metadata("text_classifier").name)
for call in (client.get_model_repository_index, lambda: client.unload_model("classifier"), client.get_log_settings,
             client.get_trace_settings, client.get_system_shared_memory_status):
    print(refused(call))
"""
    lines = grpc(front, code).splitlines()
    assert lines[:3] == ["7", "True True", "text_classifier"]
    others = lines[3:]
    assert len(others) == 5
    assert all(line.startswith("refused: [StatusCode.UNIMPLEMENTED]") for line in others), others


def test_grpc_messages_are_not_compressed_and_not_too_large(front):
    code = """
print(infer(b"x" * 100_000))
print(refused(lambda: infer(b"x", compression_algorithm="gzip")))
print(refused(lambda: infer(b"x" * 20_000_000)))
"""
    answered, compressed, large = grpc(front, code).splitlines()
    assert answered.isdecimal()
    assert compressed.startswith("refused: ")
    assert "415" in compressed
    assert large.startswith("refused: ")
    assert "413" in large
