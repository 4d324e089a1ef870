"""Other users of the machine see neither texts nor keys, and the server sees only named variables."""

from __future__ import annotations

import stat

from build_scripts.serving.keep.run_directory import run_directory
from build_scripts.serving.start.environment import NAMES, passed_on
from tests.support.servers import embedded


def test_only_the_owner_may_read_a_servers_files(default_server):
    directory = run_directory(default_server.address.http_port)
    files = [path for path in directory.rglob("*") if path.is_file()]
    segments = default_server.shared_memory()
    assert {"state.json", "tritonserver.log"} <= {path.name for path in files}
    assert len(segments) == (2 if embedded() else 1)  # one for each process of the python backend
    readable = {path: stat.filemode(path.stat().st_mode) for path in (directory, *segments)}
    assert {path: mode for path, mode in readable.items() if mode[-6:] != "------"} == {}


def test_server_gets_named_variables_only(monkeypatch):
    for name in (
        "AIP_MODE",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "http_proxy",
        "HTTPS_PROXY",
        "MODEL",
        "TEXT",
        "PATHS",
        "PYTORCH_JIT",
        "PYTHONWARNINGS",
        "PYTHONOPTIMIZE",
    ):
        monkeypatch.setenv(name, "set")
    for name in ("PATH", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OTEL_SERVICE_NAME"):
        monkeypatch.setenv(name, name)
        assert passed_on()[name] == name
    assert {name for name, value in passed_on().items() if value == "set"} == set()
    assert "PATH" in NAMES


def test_no_variable_opens_a_cloud_providers_endpoint(default_server):
    command = default_server.find("bin/tritonserver").cmdline()
    assert {"--allow-vertex-ai=false", "--allow-sagemaker=false"} <= set(command)
