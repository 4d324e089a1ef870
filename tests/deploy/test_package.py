"""A package loads after each way to a server: copies, archives, buckets, volumes."""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
from pathlib import Path

import pytest

from build_scripts.benchmarks.subprocesses import free_ports, listens
from build_scripts.serving.keep.inference import wait_until_healthy
from build_scripts.serving.start.installation import find_installation
from tests.support.containers import run
from tests.support.deploy_tools import need, tool
from tests.support.servers import post, running
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server
SCRIPT = Path(__file__).parents[1] / "support" / "object_store.py"
TEXT, CLASS_ID = "Midfielder scores twice as champions win away", 7


def same_files(one: Path, other: Path) -> bool:
    """Whether two directories hold the same, and hold it as ordinary files; a server may have left bytecode beside."""

    def content(directory: Path) -> list[Path]:
        paths = (path.relative_to(directory) for path in directory.rglob("*"))
        return sorted(path for path in paths if "__pycache__" not in path.parts)

    names = content(one)
    assert names
    links = [path for path in other.rglob("*") if path.is_symlink()]
    return (
        not links
        and names == content(other)
        and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names if (one / name).is_file())
    )


def cp(package: Path, target: Path) -> Path:
    run("cp", "-r", package / "model_repository", target)
    return target


def tar(package: Path, target: Path) -> Path:
    target.mkdir()
    run("tar", "-C", target, "-xf", package / "model_repository.tar")
    return target / "model_repository"


def rsync(package: Path, target: Path) -> Path:
    need("rsync")
    run("rsync", "--recursive", f"{package}/model_repository/", target)
    return target


def zip_(package: Path, target: Path) -> Path:
    need("zip", "unzip")
    run("zip", "-qr", target.with_suffix(".zip"), ".", cwd=package / "model_repository")
    run("unzip", "-q", target.with_suffix(".zip"), "-d", target)
    return target


def bucket(package: Path, target: Path) -> Path:
    """Through S3, as moto serves it, and KServe's own downloader."""
    python = tool("kserve", "python")
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [tool("kserve", "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: listens(port), "moto does not listen")
        run(python, SCRIPT, f"http://127.0.0.1:{port}", package / "model_repository", target)
    finally:
        server.terminate()
        server.wait(HANG_S)
    return target


def oci_volume(package: Path, target: Path) -> Path:
    """What a runtime mounts: the image, through a registry's copy of it, unpacked."""
    need("skopeo", "umoci", root=True)
    run("skopeo", "copy", f"oci:{package}/oci:latest", f"oci:{target}-copy:latest")
    run("umoci", "unpack", "--image", f"{target}-copy:latest", target)
    return target / "rootfs" / "models"


@pytest.mark.parametrize("way", [cp, tar, rsync, zip_, bucket, oci_volume], ids=lambda way: way.__name__.strip("_"))
def test_transport_keeps_every_file(packed, tmp_path, way):
    arrived = way(packed.directory, tmp_path / "arrived")
    assert same_files(packed.directory / "model_repository", arrived)
    run("sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS", cwd=arrived)


def test_server_answers_from_a_read_only_mount(packed, tmp_path):
    need("umoci", root=True)
    models = tmp_path / "models"
    models.mkdir()
    run("mount", "--bind", packed.directory / "model_repository", models)
    try:
        run("mount", "-o", "remount,bind,ro", models)
        with pytest.raises(OSError, match="Read-only"):
            (models / "probe").touch()
        with running(models, tmp_path / "output.txt") as server:
            status, body = post(f"{server.http}/v2/models/text_classifier/generate", {"TEXT": TEXT})
            assert (status, json.loads(body)["CLASS_ID"]) == (200, CLASS_ID)
    finally:
        run("umount", models)


def test_plain_tritonserver_loads_kserves_download(packed, tmp_path):
    """Without this project around it, as in KServe's own runtime: every model in the directory is loaded."""
    models = bucket(packed.directory, tmp_path / "models")
    http, grpc, metrics = free_ports(3)
    installation = find_installation()
    command = [installation.binary, *installation.arguments, f"--model-repository={models}"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--http-address=127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **installation.environment, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{http}"
    try:
        wait_for(lambda: wait_until_healthy(url, 1.0).healthy, (tmp_path / "log").read_text())
        status, body = post(f"{url}/v2/models/text_classifier/generate", {"TEXT": TEXT})
        assert (status, json.loads(body)["CLASS_ID"]) == (200, CLASS_ID)
    finally:
        server.terminate()
        server.wait(HANG_S)


def test_another_tool_reads_the_images_digest_and_labels(packed):
    need("skopeo")
    found = json.loads(run("skopeo", "inspect", f"oci:{packed.directory}/oci:latest").stdout)
    assert (found["Digest"], found["Os"]) == (packed.digest, "linux")
    assert found["Labels"] == {"org.opencontainers.image.version": packed.releases["text_classifier"]}
