"""The package, the image and the network that these tests share. Each is made once, and for real.

Not part of `make test`: `make test-deploy` installs what they need, and runs them.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from build_scripts.core.paths import PROJECT
from build_scripts.releases.package import Package, package
from tests.support import containers
from tests.support.containers import Buildah, Container, Namespaces, run
from tests.support.deploy_tools import PATH, TOOLS, need, pip_as_here
from tests.support.servers import wait_for

START_LIMIT_S = 120.0
# Kept between runs: a system of Debian's, which nobody changes.
BASE = TOOLS / "base"
# File of rules -> the component of deploy/kubernetes that holds them.
RULES = {"rules.yaml": "monitoring", "edge-rules.yaml": "edge-monitoring"}


@pytest.fixture(scope="session", autouse=True)
def paths():
    os.environ["PATH"] = PATH


@pytest.fixture(scope="session")
def packed(default_repository, tmp_path_factory) -> Package:
    """The embedded default model, packed."""
    return package(default_repository, tmp_path_factory.mktemp("packed") / "package")


@pytest.fixture(scope="session")
def rules(tmp_path_factory) -> Path:
    """A directory with the rules as Prometheus reads them, and their tests."""
    directory = tmp_path_factory.mktemp("rules")
    for name, component in RULES.items():
        file = PROJECT / "deploy" / "kubernetes" / "components" / component / "prometheus-rule.yaml"
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        (directory / name).write_text(yaml.safe_dump(document["spec"]), encoding="utf-8")
    shutil.copy(Path(__file__).parent / "rules_test.yaml", directory)
    return directory


@dataclass(frozen=True)
class Image:
    """A built image. config: as Docker keeps it. root: its files, unpacked, which no container writes to."""

    config: dict
    root: Path


@pytest.fixture(scope="session")
def base_system() -> Path:
    """Debian 12 with most of what the Containerfile asks for, in place of the base image of a registry."""
    need("mmdebstrap", root=True)
    if not (BASE / "complete").exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(BASE, ignore_errors=True)
        sources = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").stdout.split()
        packages = "ca-certificates,python3.11,libpython3.11"
        run("mmdebstrap", "--variant=minbase", f"--include={packages}", "bookworm", BASE, *sources[:1])
        (BASE / "complete").touch()
    return BASE


@pytest.fixture(scope="session")
def image(packed, base_system, tmp_path_factory):
    """deploy/Containerfile.embedded, built as it is on that base."""
    need("buildah", root=True)
    buildah = Buildah(tmp_path_factory.mktemp("images"))
    context = tmp_path_factory.mktemp("context")
    shutil.copytree(PROJECT / "deploy", context / "deploy")
    shutil.copytree(PROJECT / "build_scripts", context / "build_scripts")
    shutil.copy(PROJECT / ".dockerignore", context)
    shutil.copytree(packed.directory / "model_repository", context / "build" / "package" / "model_repository")
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, base_system, "/")
    buildah("commit", "--quiet", "--rm", base, "base")
    buildah(
        *("build", "--isolation", "chroot", "--format", "docker", *pip_as_here(), "--tag", "text-classifier"),
        *("--build-arg", "BASE=localhost/base", "--file", context / "deploy" / "Containerfile.embedded", context),
    )
    config = json.loads(buildah("inspect", "--type", "image", "text-classifier"))["Docker"]["config"]
    root = Path(buildah("mount", buildah("from", "text-classifier")))
    yield Image(config, root)
    shutil.rmtree(buildah.directory)


@pytest.fixture(scope="session")
def network():
    need("iproute2", root=True)
    with containers.namespaces() as made:
        yield made


@pytest.fixture(scope="session")
def start(image, network: Namespaces, tmp_path_factory):
    """start(number, **options): a container of the image with the address .number, not waited for; all are removed."""
    need("runc", root=True)
    work = tmp_path_factory.mktemp("containers")
    started: list[Container] = []

    def run_one(number: int, **options) -> Container:
        container = containers.start(image.config, image.root, network, number, work, **options)
        started.append(container)
        return container

    yield run_one
    for container in started:
        container.remove()


def await_well(container: Container) -> float:
    """Seconds until the image's own health command says well."""

    def well() -> bool:
        assert container.process.poll() is None, container.said()
        return container.inside("python", "-m", "build_scripts.serving.keep.health", check=False).returncode == 0

    return wait_for(well, START_LIMIT_S, container.said())
