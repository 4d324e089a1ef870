"""Who has not the supervisor's key can neither load models nor read shared memory."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from build_scripts.core.names import ENSEMBLE, TOKENIZER
from tests.support.waiting import HANG_S


@pytest.mark.parametrize("key", [None, "wrong"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", f"/v2/repository/models/{TOKENIZER}/load"),
        ("POST", f"/v2/repository/models/{ENSEMBLE}/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
    ],
)
def test_model_control_over_http_needs_the_key(default_server, method, path, key):
    headers = {} if key is None else {"triton-control": key}
    request = urllib.request.Request(
        default_server.http + path, b"{}" if method == "POST" else None, headers, method=method
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=HANG_S)
    assert refused.value.code == 403
    refused.value.close()


@pytest.mark.parametrize("key", [None, "wrong"])
def test_model_control_over_grpc_needs_the_key(default_server, key):
    headers = None if key is None else {"triton-grpc-protocol-triton-control": key}
    with triton.InferenceServerClient(default_server.grpc) as client:
        calls = [
            lambda: client.load_model(TOKENIZER, headers=headers),
            lambda: client.unload_model(ENSEMBLE, headers=headers),
            lambda: client.get_model_repository_index(headers=headers),
            lambda: client.get_system_shared_memory_status(headers=headers),
            lambda: client.update_log_settings({}, headers=headers),
        ]
        for call in calls:
            with pytest.raises(InferenceServerException, match="restricted"):
                call()


def test_key_file_is_private(default_server):
    from build_scripts.serving.keep.run_directory import STATE_FILE, run_directory

    assert (run_directory(default_server.address.http_port) / STATE_FILE).stat().st_mode & 0o777 == 0o600
