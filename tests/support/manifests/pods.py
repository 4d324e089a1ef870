"""Cross-checks of pods: commands, probes, users, volumes, images, and how they stop."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Iterator

from build_scripts.core.paths import PROJECT
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S
from tests.support.manifests.whole import Whole, argument, container_ports, environment, proxy_configuration

# User of the official HAProxy image.
HAPROXY_USER = 99


# A probe that takes this long is not a sign of a dead server: starting Python on a throttled CPU takes seconds.
PROBE_TIMEOUT_S = 5


# In flight after the drain, and a margin.
AFTER_DRAIN_S = EXIT_TIMEOUT_S + 10


def containers(whole: Whole) -> Iterator[str]:
    user = int(re.search(r"(?m)^USER (\d+)", (whole.deploy / "Containerfile").read_text(encoding="utf-8"))[1])
    for name, (_, pod) in whole.pods.items():
        for container in pod["containers"]:
            context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
            if not (context.get("runAsNonRoot") is context.get("readOnlyRootFilesystem") is True):
                yield f"{name} may run as root, or write to its root"
            if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{name} may gain privileges"
            if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
                yield f"{name} has no seccomp profile"
            expected = HAPROXY_USER if "proxy" in name else user
            if context.get("runAsUser", expected) != expected or context.get("fsGroup", expected) != expected:
                yield f"{name} runs as {context.get('runAsUser')}, its image as {expected}"
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            if not limits.keys() >= {"cpu", "memory"} or not quantity(requests["memory"]) <= quantity(limits["memory"]):
                yield f"{name}: requests {requests} and limits {limits}"
            for option in [*container.get("command", []), *container.get("args", [])]:
                if "proxy" not in name and option.startswith("--") and option not in server_options():
                    yield f"{name}: the launcher has no option {option}"
            if "proxy" not in name and argument(container, "--log", "text") != "json":
                yield f"{name} does not log in JSON"
        if whole.kind("Deployment") and pod.get("automountServiceAccountToken") is not False:
            yield f"{name} carries a service account's token"


def quantity(text: str) -> float:
    """A quantity of Kubernetes as a number; NaN, which fits no limit, for any other text."""
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", text)
    return float(found[1]) * {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[found[2]] if found else math.nan


@functools.cache
def server_options() -> set[str]:
    command = [sys.executable, "-m", "build_scripts", "serve", "--help"]
    return set(re.findall(r"--[a-z-]+", subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout))


def probes(whole: Whole) -> Iterator[str]:
    for name, (_, pod) in whole.pods.items():
        for container in pod["containers"]:
            found = {kind: container.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")}
            for kind, probe in found.items():
                if not probe:
                    if "proxy" not in name:
                        yield f"{name} has no {kind} probe"
                    continue
                if probe.get("timeoutSeconds", 1) < PROBE_TIMEOUT_S:
                    yield f"{name}: a busy machine fails the {kind} probe after {probe.get('timeoutSeconds', 1)} s"
                if "exec" in probe:
                    yield from (
                        f"{name}, {kind} probe: {one}" for one in command(probe["exec"]["command"], kind, container)
                    )
                elif probe.get("httpGet", {}).get("port") not in container_ports(pod):
                    yield f"{name}: the {kind} probe asks another port"
                elif f"path {probe['httpGet']['path']} " not in proxy_configuration(whole):
                    yield f"{name}: the {kind} probe asks {probe['httpGet']['path']}"
            startup = found["startup"]
            if startup and startup["periodSeconds"] * startup.get("failureThreshold", 3) < 300:
                yield f"{name}: a large model has less than five minutes to load"
            liveness = found["liveness"]
            if liveness["periodSeconds"] * liveness.get("failureThreshold", 3) < 30:
                yield f"{name}: killed within half a minute, while its supervisor replaces the server"


def command(words: list[str], kind: str, container: dict) -> Iterator[str]:
    module = words[words.index("-m") + 1] if "-m" in words else ""
    if words[0] != "python" or not module or importlib.util.find_spec(module) is None:
        yield f"no command {' '.join(words)}"
    if ("--live" in words) != (kind == "liveness"):
        yield "--live belongs to the liveness probe alone"
    port = argument(container, "--http-port", "8000")
    url = words[words.index("--url") + 1] if "--url" in words else "http://127.0.0.1:8000"
    if url != f"http://127.0.0.1:{port}":
        yield f"asks {url}, the server listens on {port}"


def stopping(whole: Whole) -> Iterator[str]:
    for name, (_, pod) in whole.pods.items():
        (container,) = pod["containers"]
        grace = pod.get("terminationGracePeriodSeconds", 30)
        if "proxy" in name:
            hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["", "0"])
            hard = int(re.search(r"hard-stop-after (\d+)s", proxy_configuration(whole))[1])
            if hook[0] != "sleep" or int(hook[1]) < 10:
                yield f"{name} stops to listen before the Service has forgotten it"
            if grace < int(hook[1]) + hard:
                yield f"{name} is killed after {grace} s"
            continue
        drain = int(argument(container, "--drain", "0"))
        probe = container["readinessProbe"]
        if drain <= probe.get("failureThreshold", 3) * (probe["periodSeconds"] + probe["timeoutSeconds"]):
            yield f"{name} drains for {drain} s, which its readiness probe may not notice"
        if grace < drain + AFTER_DRAIN_S:
            yield f"{name} is killed after {grace} s, and drains for {drain} s"
    for one in whole.kind("Deployment"):
        rolling = one["spec"].get("strategy", {}).get("rollingUpdate", {})
        if "gpu" not in whole.name and rolling.get("maxUnavailable") != 0:
            yield f"{one['metadata']['name']}: a rollout takes a replica away before another is there"
    for one in whole.kind("PodDisruptionBudget"):
        if one["spec"].get("maxUnavailable") != 1:
            yield f"PodDisruptionBudget {one['metadata']['name']}: {one['spec']}"


def volumes(whole: Whole) -> Iterator[str]:
    maps = {one["metadata"]["name"]: one["data"] for one in whole.kind("ConfigMap")}
    for name, (_, pod) in whole.pods.items():
        declared = {volume["name"]: volume for volume in pod.get("volumes", [])}
        mounted = [mount for container in pod["containers"] for mount in container.get("volumeMounts", [])]
        if {mount["name"] for mount in mounted} != declared.keys():
            yield f"{name} mounts {sorted(mount['name'] for mount in mounted)} of {sorted(declared)}"
            continue
        paths = {mount["mountPath"]: declared[mount["name"]] for mount in mounted}
        if "emptyDir" not in paths.get("/tmp", {}):
            yield f"{name} cannot write to /tmp"
        if "proxy" not in name and paths.get("/dev/shm", {}).get("emptyDir", {}).get("medium") != "Memory":
            yield f"{name}: /dev/shm is not memory"
        for mount in mounted:
            config = declared[mount["name"]].get("configMap")
            if config and mount.get("subPath") not in maps.get(config["name"], {}):
                yield f"{name} mounts {mount.get('subPath')} of the ConfigMap {config['name']}"
            secret = declared[mount["name"]].get("secret")
            if secret and (secret["secretName"] != "text-classifier-tls" or secret.get("defaultMode") != 0o440):
                yield f"{name} mounts the secret {secret}"
            if secret and f"{mount['mountPath']}/service.pem" != environment(pod).get("CERTIFICATE"):
                yield f"{name} looks for its certificate in {environment(pod).get('CERTIFICATE')}"


def images(whole: Whole) -> Iterator[str]:
    for name, (_, pod) in whole.pods.items():
        for container in pod["containers"]:
            if not re.fullmatch(r"[a-z.]+\.[a-z]+/[\w/.-]+:[\w.]+", container["image"]):
                yield f"{name}: no registry and tag in {container['image']}; does the kustomization rename it?"
