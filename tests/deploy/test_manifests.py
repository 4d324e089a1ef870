"""The manifests: valid to the last field, of one piece, and with a check that notices a typo in every kind."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from build_scripts.core.paths import PROJECT
from tests.support.containers import run
from tests.support.deploy_tools import need, tool

KUBERNETES = PROJECT / "deploy" / "kubernetes"
WHOLES = ("base", "overlays/production", "overlays/gpu", "kserve")
VALIDATOR = Path(__file__).parents[1] / "support" / "validate_manifests.py"
# Not this project's to keep: where they are at hand, custom resources are checked against them.
DEFINITIONS = PROJECT.parent / "shared" / "crds"
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
# kind -> where a typo is planted: the path to a mapping, and the key in it that is misspelt.
TYPOS = {
    "ConfigMap": ((), "data"),
    "Deployment": (("spec", "template", "spec", "containers", 0, "livenessProbe"), "failureThreshold"),
    "HorizontalPodAutoscaler": (("spec", "metrics", 0, "pods", "target"), "averageValue"),
    "NetworkPolicy": (("spec",), "policyTypes"),
    "PodDisruptionBudget": (("spec",), "maxUnavailable"),
    "Service": (("spec", "ports", 0), "targetPort"),
    "InferenceService": (("spec", "predictor", "model"), "storageUri"),
    "PodMonitor": (("spec", "podMetricsEndpoints", 0), "interval"),
    "PrometheusRule": (("spec", "groups", 0, "rules", 0), "expr"),
    "ScaledObject": (("spec", "triggers", 0), "metricType"),
    "ServingRuntime": (("spec", "containers", 0, "securityContext"), "allowPrivilegeEscalation"),
}


@cache
def rendered(whole: str) -> list[dict]:
    """The documents of a kustomization, as kubectl sends them."""
    text = run(tool("kubernetes", "kubectl"), "kustomize", KUBERNETES / whole).stdout
    code = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))"
    return json.loads(run(tool("kubernetes", "python"), "-c", code, input=text).stdout)


def validate(documents: list[dict], definitions: str) -> list[str]:
    """One line a document."""
    text = "\n---\n".join(json.dumps(document) for document in documents)
    command = [str(tool("kubernetes", "python")), str(VALIDATOR), definitions]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == ("wrong " in done.stdout), done.stderr
    return done.stdout.splitlines()


def documents() -> list[dict]:
    return [document for whole in WHOLES for document in rendered(whole)]


def need_definitions() -> str:
    if not DEFINITIONS.is_dir():
        pytest.skip(f"no custom resource definitions in {DEFINITIONS}; these kinds are not validated: {sorted(CUSTOM)}")
    return str(DEFINITIONS)


def test_kubernetes_own_kinds_pass_strict_validation():
    own = [document for document in documents() if document["kind"] not in CUSTOM]
    assert validate(own, "") == [f"ok {document['kind']}" for document in own]


def test_custom_resources_pass_strict_validation_against_their_definitions():
    custom = [document for document in documents() if document["kind"] in CUSTOM]
    assert {document["kind"] for document in custom} == CUSTOM
    assert validate(custom, need_definitions()) == [f"ok {document['kind']}" for document in custom]


def test_every_kind_has_a_typo_that_can_be_planted():
    assert {document["kind"] for document in documents()} == set(TYPOS)


@pytest.mark.parametrize("kind", TYPOS)
def test_a_typo_is_caught(kind):
    path, key = TYPOS[kind]
    document = copy.deepcopy(next(d for d in documents() if d["kind"] == kind))
    place = document
    for step in path:
        place = place[step]
    place[key + "s"] = place.pop(key)
    (line,) = validate([document], need_definitions() if kind in CUSTOM else "")
    assert line.startswith(f"wrong {kind}")
    assert key in line


@pytest.mark.parametrize("file", sorted(KUBERNETES.rglob("kustomization.yaml")), ids=lambda file: file.parent.name)
def test_a_typo_in_a_kustomization_is_caught(file, tmp_path):
    copied = shutil.copytree(KUBERNETES, tmp_path / "kubernetes") / file.relative_to(KUBERNETES)
    text = copied.read_text(encoding="utf-8")
    key = re.search(r"(?m)^(resources|patches):", text)[1]
    copied.write_text(text.replace(f"{key}:", f"{key}s:", 1), encoding="utf-8")
    kubectl, root = tool("kubernetes", "kubectl"), tmp_path / "kubernetes"
    said = [run(kubectl, "kustomize", root / whole, check=False).stderr for whole in WHOLES]
    assert any("unknown field" in stderr and f"{key}s" in stderr for stderr in said), said


@pytest.mark.parametrize("whole", WHOLES[:3])
def test_every_selector_selects_the_pods_of_one_deployment(whole):
    """kustomize's includeSelectors, tried, left the disruption budget with {}, which is every pod of the namespace."""
    pods = {
        d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"]
        for d in rendered(whole)
        if d["kind"] == "Deployment"
    }
    checked = 0
    for document in rendered(whole):
        spec = document.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        found = [name for name, labels in pods.items() if wanted and wanted.items() <= labels.items()]
        assert len(found) == 1, document
        assert document["metadata"]["name"].startswith(found[0]), document
        checked += 1
    assert checked >= 5


@pytest.mark.parametrize("whole", WHOLES)
def test_every_container_is_held_to_the_strictest(whole):
    pods = [d["spec"]["template"]["spec"] for d in rendered(whole) if d["kind"] == "Deployment"]
    pods += [d["spec"] for d in rendered(whole) if d["kind"] == "ServingRuntime"]
    assert pods
    for pod in pods:
        for container in pod["containers"]:
            context = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert context["runAsNonRoot"] is context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


def test_the_grace_period_covers_the_drain_and_what_is_in_flight():
    (deployment,) = (d for d in rendered("base") if d["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    drain = int(arguments[arguments.index("--drain") + 1])
    probe = pod["containers"][0]["readinessProbe"]
    assert drain > probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])
    assert pod["terminationGracePeriodSeconds"] >= drain + 20


@pytest.mark.parametrize("whole", ["overlays/production", "overlays/gpu"])
def test_who_scales_decides_alone(whole):
    (deployment,) = (
        d for d in rendered(whole) if d["metadata"]["name"] == "text-classifier" if d["kind"] == "Deployment"
    )
    assert "replicas" not in deployment["spec"]


def test_the_clusters_proxy_is_the_tested_one_but_for_where_the_replicas_are():
    tested = (PROJECT / "deploy" / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")
    cluster = (KUBERNETES / "components" / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")

    def rules(text: str) -> str:
        text = text[text.index("\nglobal\n") :].split("\n# Pods come and go")[0]
        return re.sub(r"(?m)^  server(-template)? .*\n", "", text).strip()

    assert rules(cluster) == rules(tested)
    assert cluster.count("server-template") == 2


def test_the_clusters_proxy_configuration_is_valid(tmp_path):
    need("haproxy", "openssl")
    from tests.support.balancers import certificate

    certificate(tmp_path)
    environment = {"CERTIFICATE": str(tmp_path / "service.pem"), "ADMIN_SOCKET": str(tmp_path / "admin.sock")}
    file = KUBERNETES / "components" / "proxy" / "haproxy.cfg"
    done = run("haproxy", "-c", "-f", file, env={"PATH": "/usr/sbin:/usr/bin", **environment})
    assert "valid" in done.stdout


@pytest.mark.parametrize("name", ["Containerfile", "Containerfile.embedded"])
def test_the_containerfiles_pass_the_linter(name):
    run(tool("kubernetes", "hadolint"), "--failure-threshold", "warning", PROJECT / "deploy" / name)


def test_the_image_has_the_projects_server():
    """The other packages are held by constraints.txt; this one stands in pyproject.toml alone."""
    pin = re.search(r"nvidia-pytriton==[\d.]+", (PROJECT / "deploy" / "Containerfile.embedded").read_text())[0]
    assert f'"{pin}"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
