"""The manifests: valid to the last field, of one piece, and with checks that notice a mistake of each kind."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from build_scripts.core.paths import PROJECT
from tests.deploy.mistakes import MISTAKES
from tests.support.containers import run
from tests.support.deploy_tools import need, tool
from tests.support.manifests.checks import problems
from tests.support.manifests.whole import Whole

DEPLOY = PROJECT / "deploy"
WHOLES = ("base", "overlays/production", "overlays/gpu", "kserve", "canary")
VALIDATOR = Path(__file__).parents[1] / "support" / "manifests" / "validate.py"


def render(deploy: Path, name: str) -> Whole:
    """The documents of a kustomization, as kubectl sends them."""
    text = run(tool("kubernetes", "kubectl"), "kustomize", deploy / "kubernetes" / name).stdout
    return Whole(name, [document for document in yaml.safe_load_all(text) if document], deploy)


rendered = functools.cache(functools.partial(render, DEPLOY))


def validate(documents: list[dict]) -> list[str]:
    """One line a document."""
    text = "\n---\n".join(json.dumps(document) for document in documents)
    command = [str(tool("kubernetes", "python")), str(VALIDATOR)]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == ("wrong " in done.stdout), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", WHOLES)
def test_manifests_pass_strict_validation(name):
    documents = rendered(name).documents
    assert validate(documents) == [f"ok {document['kind']}" for document in documents]


@pytest.mark.parametrize("name", WHOLES)
def test_names_ports_and_numbers_agree(name):
    assert problems(rendered(name)) == []


def found_in(deploy: Path) -> list[str]:
    """What kubectl, the schemas and the cross-checks say of a copy of the deploy directory: the first that objects."""
    try:
        wholes = [render(deploy, name) for name in WHOLES]
    except AssertionError as refusal:
        return [str(refusal)]
    valid = [document for name in WHOLES for document in rendered(name).documents]
    lines = validate([document for whole in wholes for document in whole.documents if document not in valid])
    return [line for line in lines if not line.startswith("ok ")] or [
        one for whole in wholes for one in problems(whole)
    ]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_planted_mistake_is_caught(mistake, tmp_path):
    deploy = shutil.copytree(DEPLOY, tmp_path / "deploy")
    file = deploy / mistake.file
    text = file.read_text(encoding="utf-8")
    assert mistake.before in text
    file.write_text(text.replace(mistake.before, mistake.after, 1), encoding="utf-8")
    assert found_in(deploy)


@pytest.mark.parametrize("variables", [{}, {"API_KEYS": "keys"}, {"REPLICAS_NAME": "text-classifier-pods"}])
def test_the_proxys_configuration_is_valid_in_each_of_its_forms(tmp_path, variables):
    need("haproxy", "openssl")
    from tests.support.balancers import certificate

    certificate(tmp_path)
    (tmp_path / "keys").touch()
    environment = {"CERTIFICATE": "service.pem", "ADMIN_SOCKET": str(tmp_path / "admin.sock"), **variables}
    command = ("haproxy", "-c", "-f", DEPLOY / "proxy" / "haproxy.cfg")
    done = run(*command, env={"PATH": "/usr/sbin:/usr/bin", **environment}, cwd=tmp_path)
    assert "valid" in done.stdout
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.embedded"])
def test_the_containerfiles_pass_the_linter(name):
    run(tool("kubernetes", "hadolint"), "--failure-threshold", "warning", DEPLOY / name)


def test_the_image_has_the_projects_versions():
    """Those of constraints.txt; nvidia-pytriton is in pyproject.toml alone."""
    listed = "".join((DEPLOY / name).read_text() for name in ("requirements.txt", "requirements-embedded.txt"))
    pins = re.findall(r"(?m)^([a-z][\w-]*==[\w.]+)", listed)
    locked = (PROJECT / "constraints.txt").read_text(encoding="utf-8")
    direct = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(pins) >= 10
    assert [pin for pin in pins if f"{pin} " not in locked and f'"{pin}"' not in direct] == []


def test_the_image_has_what_torch_needs():
    """It is installed without looking for dependencies, because each has a hash in the list."""
    listed = (DEPLOY / "requirements-embedded.txt").read_text(encoding="utf-8")
    needed = [Requirement(line) for line in requires("torch") or []]
    names = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert "typing-extensions" in names
    assert [name for name in names if not re.search(rf"(?m)^{name}==", listed)] == []


def test_the_documented_wheelhouse_has_what_the_installer_asks_for():
    page = (PROJECT / "docs" / "production.md").read_text(encoding="utf-8")
    asked = (PROJECT / "build_scripts" / "install.sh").read_text() + (PROJECT / "pyproject.toml").read_text()
    pins = re.search(r"(?m)^\$ \$fetch (pip==.*)", page)[1].split()
    assert [pin.partition("==")[0] for pin in pins] == ["pip", "setuptools"]
    assert [pin for pin in pins if pin not in asked] == []
