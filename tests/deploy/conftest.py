"""The package, the image and the network that these tests share. Each is made once, and for real.

Not part of `make test`: `make test-deploy` installs what they need, and runs them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from build_scripts.core.paths import PROJECT
from build_scripts.releases.package import Package, package
from tests.support import containers
from tests.support.balancers import CONFIGURATIONS, REPLICA, Proxy, proxy
from tests.support.containers import NETWORK, Buildah, Container, Namespaces, run
from tests.support.deploy_tools import PATH, TOOLS, need, pip_as_here
from tests.support.waiting import wait_for

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
    for tests in Path(__file__).parent.glob("*_test.yaml"):
        shutil.copy(tests, directory)
    return directory


@dataclass(frozen=True)
class Image:
    """A built image. config: as Docker keeps it. root: its files, unpacked, which no container writes to."""

    config: dict
    root: Path


def debian(directory: Path, *packages: str) -> Path:
    """A minimal Debian 12 with packages, in place of the base image of a registry. Kept between runs."""
    need("mmdebstrap", root=True)
    if not (directory / "complete").exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        sources = run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").stdout.split()
        included = f"--include={','.join(('ca-certificates', *packages))}"
        run("mmdebstrap", "--variant=minbase", included, "bookworm", directory, *sources[:1])
        (directory / "complete").touch()
    return directory


@pytest.fixture(scope="session")
def context(packed, tmp_path_factory) -> Path:
    """What a build copies from: a checkout made under umask 077."""
    directory = tmp_path_factory.mktemp("context")
    shutil.copytree(PROJECT / "deploy", directory / "deploy")
    shutil.copytree(PROJECT / "build_scripts", directory / "build_scripts")
    shutil.copy(PROJECT / ".dockerignore", directory)
    shutil.copytree(packed.directory / "model_repository", directory / "build" / "package" / "model_repository")
    for path in directory.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return directory


@pytest.fixture(scope="session")
def build(context, tmp_path_factory):
    """build(name, base): the image of deploy/<name> on a base system that lies in a directory."""
    need("buildah", root=True)
    buildah = Buildah(tmp_path_factory.mktemp("images"))

    def build_one(name: str, base: Path) -> Image:
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, base, "/")
        buildah("commit", "--quiet", "--rm", container, f"base-{name.lower()}")
        buildah(
            *("build", "--isolation", "chroot", "--format", "docker", *pip_as_here(), "--tag", name.lower()),
            *("--build-arg", f"BASE=localhost/base-{name.lower()}", "--build-arg", "RELEASE=one"),
            *("--file", context / "deploy" / name, context),
        )
        config = json.loads(buildah("inspect", "--type", "image", name.lower()))["Docker"]["config"]
        return Image(config, Path(buildah("mount", buildah("from", name.lower()))))

    yield build_one
    shutil.rmtree(buildah.directory)


@pytest.fixture(scope="session")
def image(build) -> Image:
    """deploy/Containerfile.embedded, built as it is on Debian 12 with most of what it asks for."""
    return build("Containerfile.embedded", debian(TOOLS / "base", "python3.11", "libpython3.11"))


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
    """Seconds until the image's own health command says that it is ready."""

    def well() -> bool:
        assert container.process.poll() is None, container.said()
        return container.inside("python", "-m", "build_scripts.serving.keep.health", check=False).returncode == 0

    return wait_for(well, container.said)


@pytest.fixture
def started(network, tmp_path):
    """started(kind, patient, number, **environment): a proxy as shipped, in front of the stand-in alone.

    patient: it waits minutes for the rest of a request, so that a flood adds up however slowly it comes.
    """
    need("haproxy", "nginx-light", "curl", "openssl")
    with contextlib.ExitStack() as stack:

        def start(kind: str = "haproxy", patient: bool = False, number: int = 1, **environment: str) -> Proxy:
            shipped = next(CONFIGURATIONS.glob(f"{kind}.c*")).read_text(encoding="utf-8")
            text = re.sub(r"(?m)^ *server (replica[23] |192\.0\.2\.1[23]:).*\n", "", shipped)
            if patient:
                text = re.sub(r"(timeout http-request|wait-for-body time|client_\w+_timeout) \d+s", r"\1 300s", text)
            configuration = tmp_path / f"{kind}.cfg"
            configuration.write_text(text.replace("192.0.2.11", f"{NETWORK}.{REPLICA}"), encoding="utf-8")
            directory = tmp_path / f"{kind}{number}"
            return stack.enter_context(proxy(kind, network, directory, configuration, number, **environment))

        yield start
