"""How long a start takes is told of files on the disk and of files in memory, and of no mixture of the two."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from build_scripts.benchmarks import starting
from build_scripts.benchmarks.subprocesses import free_ports, listens
from build_scripts.core.options import Address


def in_memory(file) -> int:
    """Bytes of a file in the page cache, as util-linux sees it."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("fincore") is None, reason="util-linux has no fincore here")
def test_files_are_read_from_the_disk_after_they_were_dropped(tmp_path):
    file = tmp_path / "below" / "weights"
    file.parent.mkdir()
    file.write_bytes(bytes(1 << 20))
    if subprocess.run(["stat", "-f", "-c", "%T", file], capture_output=True, text=True).stdout.strip() == "tmpfs":
        pytest.skip("this file system is memory")
    assert in_memory(file) == 1 << 20
    starting.drop_from_page_cache([tmp_path])
    assert in_memory(file) == 0


def test_a_process_that_has_loaded_torch_tells_of_warm_starts_only(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(starting, "seconds_to_answer", lambda *_: 9.0 if dropped else 3.0)
    monkeypatch.setattr(starting, "drop_from_page_cache", dropped.append)
    monkeypatch.setitem(sys.modules, "torch", None)
    asked = ([], Address(), tmp_path, tmp_path / "log", 1.0)
    assert starting.describe(*asked) == "to the first answer 3.0 s with its files in the page cache"
    monkeypatch.delitem(sys.modules, "torch")
    assert starting.describe(*asked).startswith("to the first answer 9.0 s with its files on the disk, ")
    assert len(dropped) == 1


@pytest.mark.server
def test_a_server_that_was_timed_has_answered_and_is_gone(tiny_repository, subject, tmp_path):
    repository = shutil.copytree(tiny_repository, tmp_path / "repository", symlinks=True)  # a server writes into it
    address = Address("127.0.0.1", *free_ports(3))
    ports = {"--http-port": address.http_port, "--grpc-port": address.grpc_port, "--metrics-port": address.metrics_port}
    arguments = ["--model-repository", str(repository), "--model", str(subject("bert").directory)]
    arguments += ["--precision", "fp32"]
    arguments += [str(part) for option in ports.items() for part in option]
    assert starting.seconds_to_answer(arguments, address, tmp_path / "log", 120.0) > 0
    assert not any(map(listens, ports.values()))
