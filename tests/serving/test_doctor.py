"""`doctor` has no advice where a server runs, and one line of advice for each obstacle."""

from __future__ import annotations

import json
import platform
import resource
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core import machine
from build_scripts.core.options import Address
from build_scripts.core.paths import PROJECT
from build_scripts.releases.package import package
from build_scripts.serving import doctor
from tests.support.servers import running


@pytest.fixture
def address():
    return Address("127.0.0.1", *free_ports(3))


@pytest.fixture(scope="module")
def models(tiny_repository, tmp_path_factory) -> Path:
    return package(tiny_repository, tmp_path_factory.mktemp("doctor") / "package").directory / "model_repository"


def advised(repository: Path, address: Address) -> dict[str, str]:
    """name -> line, of all findings with advice."""
    findings = list(doctor.examine(repository, address))
    assert all("\n" not in str(finding) for finding in findings)
    return {finding.name: str(finding) for finding in findings if finding.advice}


@pytest.mark.parametrize("packed", [False, True])
def test_no_advice_for_a_repository_that_serves_here(tiny_repository, models, address, packed):
    assert advised(models if packed else tiny_repository, address) == {}


def test_needs_the_standard_library_only(models, address):
    """Without the environment, as in a bare container: only torch is missing."""
    code = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from build_scripts.serving import doctor
from build_scripts.core.options import Address
print(*(f.name for f in doctor.examine(Path({str(models)!r}), Address()) if f.advice and f.name != "port"))
"""
    base = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run([base, "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "torch\n"), done.stderr


def test_advises_a_build(tmp_path, address):
    assert "make repo" in advised(tmp_path, address)["repository"]


@pytest.mark.parametrize(
    ("installed", "readable"), [("1.13.1", False), ("2.0.1", False), ("2.1.0", True), ("2.14.0", True)]
)
def test_names_an_old_torch_and_those_that_read_the_file(models, address, monkeypatch, installed, readable):
    monkeypatch.setattr(doctor, "version", lambda _: installed)
    found = advised(models, address)
    assert ("torch" not in found) == readable
    assert readable or f"installed is {installed}: use 2.1 or newer; known to read it: 2.1.2" in found["torch"]


def test_names_a_tokenizers_library_that_cannot_be_loaded(models, address, monkeypatch, tmp_path):
    with monkeypatch.context() as other:
        other.setattr(platform, "machine", lambda: "aarch64")
        assert "is for x86_64, this is aarch64" in advised(models, address)["tokenizers"]
    with monkeypatch.context() as other:
        other.setattr(platform, "libc_ver", lambda: ("glibc", "2.5"))
        assert "this is glibc 2.5: use a newer system" in advised(models, address)["tokenizers"]
    broken = shutil.copytree(models, tmp_path / "broken")
    (broken / "tokenizer" / "1" / "tokenizers" / "__init__.py").write_text("raise ImportError('not here')")
    assert "cannot load the copy (ImportError: not here)" in advised(broken, address)["tokenizers"]


def test_names_an_emulated_precision(models, address, monkeypatch, tmp_path):
    emulating = shutil.copytree(models, tmp_path / "emulating")
    manifest = json.loads((emulating / "text_classifier" / "manifest.json").read_text(encoding="utf-8"))
    (emulating / "text_classifier" / "manifest.json").write_text(
        json.dumps({**manifest, "precision": "bf16"}), encoding="utf-8"
    )
    monkeypatch.setattr(machine, "cpu_precisions", lambda: ["fp32"])
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    assert "rebuild with one of fp32" in advised(emulating, address)["precision"]


def test_names_the_limits_of_a_container(models, address, monkeypatch):
    limits = {
        resource.RLIMIT_STACK: (8 << 20, 8 << 20),
        resource.RLIMIT_NOFILE: (256, 256),
        resource.RLIMIT_AS: (3 << 30, 3 << 30),
    }
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    usage = SimpleNamespace(total=64 << 20, free=4 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    found = advised(models, address)
    assert set(found) == {"/dev/shm", "disk", "stack", "open files", "addresses", "cores"}
    assert "has 4 MiB free: 16 are needed" in found["disk"]
    assert "limited to 3.0 GiB" in found["addresses"]
    assert "4 of 64 MiB free: 48 are needed" in found["/dev/shm"]
    assert "--ulimit stack=1073741824" in found["stack"]
    assert "OMP_NUM_THREADS=64 is more than 2; unset it" in found["cores"]


def test_names_classifiers_with_different_threads_for_nvidias_backend(tiny_repository, address, monkeypatch, tmp_path):
    repository = shutil.copytree(tiny_repository, tmp_path / "repository", symlinks=True)
    shutil.copytree(repository / "text_classifier", repository / "topic", symlinks=True)
    shutil.copytree(repository / "classifier", repository / "classifier_topic", symlinks=True)
    setting = 'parameters {\n  key: "INTRA_OP_THREAD_COUNT", value: { string_value: "2" }\n}\n'
    with (repository / "classifier" / "config.pbtxt").open("a") as config:
        config.write(setting)
    which = shutil.which

    def found(server: str) -> str:
        monkeypatch.setattr(shutil, "which", lambda name: server if name == "tritonserver" else which(name))
        return "".join(
            str(one) for one in doctor.threads_of_classifiers(repository, ["text_classifier", "topic"]) if one.advice
        )

    assert "INTRA_OP_THREAD_COUNT is 2 in classifier, none in classifier_topic: " in found("/bin/tritonserver")
    assert found("") == ""
    with (repository / "classifier_topic" / "config.pbtxt").open("a") as config:
        config.write(setting)
    assert found("/bin/tritonserver") == ""


def test_names_a_taken_port(models, address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", address.http_port))
        taken.listen()
        assert "HTTP_PORT=" in advised(models, address)["port"]


@pytest.mark.server
def test_ports_of_the_running_server_are_free_for_it_only(models, tmp_path):
    """A server on another HTTP port would conflict with it."""
    with running(models, tmp_path / "output.txt") as server:
        (port,) = free_ports(1)
        assert advised(models, server.address) == {}
        lines = [str(finding) for finding in doctor.examine(models, server.address) if finding.name == "port"]
        assert len(lines) == 3
        assert all("is the running server's own, process " in line for line in lines), lines
        beside = replace(server.address, http_port=port)
        taken = [str(finding) for finding in doctor.examine(models, beside) if finding.advice]
        assert [line.rpartition("choose another with ")[2] for line in taken] == ["GRPC_PORT=…", "METRICS_PORT=…"]
