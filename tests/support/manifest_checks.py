"""Cross-checks of rendered manifests: every name, port, label and number that two places must agree on.

Beside schemas, which know fields and types but not what they refer to. `problems` returns sentences; none is good.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.paths import PROJECT

NAME = "app.kubernetes.io/name"
CLIENT = "text-classifier-client"
# Ports of the server's three protocols, by the name that manifests give them; the launcher's options change them.
SERVER_PORTS = {"http": ("--http-port", 8000), "grpc": ("--grpc-port", 8001), "metrics": ("--metrics-port", 8002)}
# User of the official HAProxy image.
HAPROXY_USER = 99
# A probe that takes this long is not a sign of a dead server: starting Python on a throttled CPU takes seconds.
PROBE_TIMEOUT_S = 5
# In flight after the drain, and a margin.
AFTER_DRAIN_S = 20


@dataclass
class Whole:
    """The documents of one kustomization. files: the deploy directory that they come from."""

    name: str
    documents: list[dict]
    deploy: Path

    def kind(self, *kinds: str) -> list[dict]:
        return [document for document in self.documents if document["kind"] in kinds]

    @property
    def pods(self) -> dict[str, tuple[dict, dict]]:
        """Name -> labels and pod specification, of everything that makes pods."""
        found = {
            one["metadata"]["name"]: (one["spec"]["template"]["metadata"]["labels"], one["spec"]["template"]["spec"])
            for one in self.kind("Deployment")
        }
        for one in self.kind("ServingRuntime"):
            predictors = [service["spec"]["predictor"] for service in self.kind("InferenceService")]
            found[one["metadata"]["name"]] = (one["spec"].get("labels", {}), {**one["spec"], **predictors[0]})
        return found

    def selected(self, selector: dict) -> list[str]:
        wanted = selector.get("matchLabels", selector)
        return [name for name, (labels, _) in self.pods.items() if wanted and wanted.items() <= labels.items()]


def problems(whole: Whole) -> list[str]:
    checks = (selectors, ports, containers, probes, stopping, volumes, networks, scaling, monitoring, images, others)
    return [f"{whole.name}: {problem}" for check in checks for problem in check(whole)]


def container_ports(pod: dict) -> dict[str, int]:
    return {port.get("name", ""): port["containerPort"] for one in pod["containers"] for port in one["ports"]}


def argument(container: dict, option: str, default: str) -> str:
    words = [*container.get("command", []), *container.get("args", [])]
    return words[words.index(option) + 1] if option in words else default


def selectors(whole: Whole) -> Iterator[str]:
    for document in whole.kind("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        kind, name, spec = document["kind"], document["metadata"]["name"], document["spec"]
        found = whole.selected(spec.get("selector") or spec.get("podSelector") or {})
        if len(found) != 1:
            yield f"{kind} {name} selects {found or 'no pods'}"
        elif name.replace("-pods", "") != found[0]:
            yield f"{kind} {name} selects the pods of {found[0]}"
    for name, (labels, pod) in whole.pods.items():
        for spread in pod.get("topologySpreadConstraints", []):
            if whole.selected(spread["labelSelector"]) != [name]:
                yield f"the pods of {name} spread by the labels of others: {labels}"


def ports(whole: Whole) -> Iterator[str]:
    for name, (_, pod) in whole.pods.items():
        named = container_ports(pod)
        if "" in named:
            yield f"a container port of {name} has no name"
        if "proxy" in name:
            binds = dict(re.findall(r"frontend (\w+) .*\n +bind :(\d+)", proxy_configuration(whole)))
            expected = {"https": int(binds["service"]), "metrics": int(binds["metrics"])}
        else:
            (container,) = pod["containers"]
            expected = {
                key: int(argument(container, option, str(number))) for key, (option, number) in SERVER_PORTS.items()
            }
        if named != expected:
            yield f"{name} listens on {expected}, its container's ports are {named}"
        if whole.kind("ServingRuntime") and next(iter(named)) != "http":
            yield "KServe leads port 80 to the first container port, which is not http"
    for service in whole.kind("Service"):
        for port in service["spec"]["ports"]:
            (owner,) = whole.selected(service["spec"]["selector"]) or [None]
            here = container_ports(whole.pods[owner][1]) if owner else {}
            if port["targetPort"] != port["name"] or port["name"] not in here:
                yield f"Service {service['metadata']['name']}: port {port['name']} leads to {port['targetPort']}"
            if port["name"] in SERVER_PORTS and port["port"] != here.get(port["name"]):
                yield f"Service {service['metadata']['name']}: port {port['name']} is {port['port']}"
            wanted = {"grpc": "kubernetes.io/h2c", "http": "http"}.get(port["name"])
            if port.get("appProtocol") != wanted:
                yield f"Service {service['metadata']['name']}: port {port['name']} speaks {port.get('appProtocol')}"
    known = {
        one["metadata"]["name"]: {p["name"]: p["port"] for p in one["spec"]["ports"]} for one in whole.kind("Service")
    }
    for route, protocol in (("HTTPRoute", "http"), ("GRPCRoute", "grpc")):
        for one in whole.kind(route):
            for target in (target for rule in one["spec"]["rules"] for target in rule["backendRefs"]):
                # The live release's Service belongs to another whole, with the same port numbers.
                canary = target["name"].endswith("-canary")
                if target["port"] != SERVER_PORTS[protocol][1] or (canary and target["name"] not in known):
                    yield f"{route} leads to {target['name']}:{target['port']}"


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
            if not limits.keys() >= {"cpu", "memory"} or quantity(requests["memory"]) > quantity(limits["memory"]):
                yield f"{name}: requests {requests} and limits {limits}"
            for option in [*container.get("command", []), *container.get("args", [])]:
                if "proxy" not in name and option.startswith("--") and option not in server_options():
                    yield f"{name}: the launcher has no option {option}"
        if whole.kind("Deployment") and pod.get("automountServiceAccountToken") is not False:
            yield f"{name} carries a service account's token"


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", text).groups()
    return float(number) * {"m": 0.001, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


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


def environment(pod: dict) -> dict[str, str]:
    return {one["name"]: one["value"] for container in pod["containers"] for one in container.get("env", [])}


def proxy_configuration(whole: Whole) -> str:
    return (whole.deploy / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")


def networks(whole: Whole) -> Iterator[str]:
    for policy in whole.kind("NetworkPolicy"):
        name, spec = policy["metadata"]["name"], policy["spec"]
        if spec.get("policyTypes") != ["Ingress", "Egress"]:
            yield f"NetworkPolicy {name} leaves a direction open"
        (owner,) = whole.selected(spec["podSelector"]) or [None]
        named = container_ports(whole.pods[owner][1]) if owner else {}
        reached: dict[str, list] = {}
        for rule in spec.get("ingress", []):
            for port in rule["ports"]:
                reached[port["port"]] = rule.get("from", [])
        if reached.keys() != named.keys():
            yield f"NetworkPolicy {name} opens {sorted(map(str, reached))} of {sorted(named)}"
        metrics = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        if reached.get("metrics") != metrics:
            yield f"NetworkPolicy {name}: metrics are open to {reached.get('metrics')}"
        if "proxy" not in name and reached.get("http") != [{"podSelector": {"matchLabels": {CLIENT: "true"}}}]:
            yield f"NetworkPolicy {name}: HTTP is open to {reached.get('http')}"
        for rule in spec.get("egress", []):
            for peer in rule["to"]:
                if "podSelector" in peer:
                    targets = whole.selected(peer["podSelector"])
                    open_ports = {port["port"] for port in rule["ports"]}
                    there = {
                        number
                        for one in targets
                        for key, number in container_ports(whole.pods[one][1]).items()
                        if key != "metrics"
                    }
                    if not targets or open_ports != there:
                        yield f"NetworkPolicy {name} lets out to {targets}: {open_ports}, which listen on {there}"
    for name, (labels, pod) in whole.pods.items():
        if "proxy" in name:
            if labels.get(CLIENT) != "true":
                yield f"{name} does not carry the label that the replicas' NetworkPolicy asks for"
            headless = [s["metadata"]["name"] for s in whole.kind("Service") if s["spec"].get("clusterIP") == "None"]
            if environment(pod).get("REPLICAS_NAME") not in headless:
                yield f"{name} looks for replicas at {environment(pod).get('REPLICAS_NAME')}; headless are {headless}"
            variables = set(re.findall(r"\$\{(\w+)\}|defined\((\w+)\)", proxy_configuration(whole)))
            known = {one for pair in variables for one in pair if one}
            if not environment(pod).keys() <= known:
                yield f"haproxy.cfg reads none of {sorted(environment(pod).keys() - known)}"
            if "text-classifier-proxy" not in {s["metadata"]["name"] for s in whole.kind("Service")}:
                yield "no Service leads to the proxy"


def queries(whole: Whole) -> Iterator[str]:
    """What an autoscaler asks Prometheus."""
    for one in whole.kind("ScaledObject"):
        yield from (trigger["metadata"]["query"] for trigger in one["spec"]["triggers"])
    for one in whole.kind("InferenceService"):
        metrics = one["spec"]["predictor"].get("autoScaling", {}).get("metrics", [])
        yield from (metric["external"]["metric"]["query"] for metric in metrics)


def scaling(whole: Whole) -> Iterator[str]:
    limit = int(re.search(r'"max_pending_requests".*?"(\d+)"', TOKENIZER.read_text(encoding="utf-8"))[1])
    records = set(re.findall(r"record: (text_classifier_\w+)", rules_file(whole).read_text(encoding="utf-8")))
    deployments = {one["metadata"]["name"]: one["spec"] for one in whole.kind("Deployment")}
    for one in whole.kind("HorizontalPodAutoscaler", "ScaledObject"):
        spec = one["spec"]
        target = spec["scaleTargetRef"]
        if target["name"] not in deployments or target.get("kind", "Deployment") != "Deployment":
            yield f"{one['kind']} scales {target}"
        elif "replicas" in deployments[target["name"]]:
            yield f"{one['kind']} and the Deployment both set the replicas"
        least = spec.get("minReplicas", spec.get("minReplicaCount"))
        most = spec.get("maxReplicas", spec.get("maxReplicaCount"))
        if not 2 <= (least or 0) <= (most or 0):
            yield f"{one['kind']}: {least} to {most} replicas"
        if one["kind"] == "ScaledObject":
            thresholds = [trigger["metadata"]["threshold"] for trigger in spec["triggers"]]
            if not (least or 0) <= spec.get("fallback", {}).get("replicas", 0) <= (most or 0):
                yield f"ScaledObject: fallback {spec.get('fallback')}"
            if any(trigger["metadata"].get("ignoreNullValues") != "false" for trigger in spec["triggers"]):
                yield "ScaledObject: no series counts as no load"
        else:
            metrics = [metric["pods"] for metric in spec["metrics"]]
            thresholds = [metric["target"]["averageValue"] for metric in metrics]
            for metric in metrics:
                if metric["metric"]["name"] not in records:
                    yield f"{one['kind']} asks for {metric['metric']['name']}; recorded are {sorted(records)}"
        if any(not 0 < float(threshold) < limit for threshold in thresholds):
            yield f"{one['kind']}: thresholds {thresholds}; a replica refuses at {limit}"
    for service in whole.kind("InferenceService"):
        predictor = service["spec"]["predictor"]
        if service["metadata"]["annotations"].get("serving.kserve.io/autoscalerClass") != "keda":
            yield "InferenceService: KServe scales by CPU"
        if not predictor.get("autoScaling") or not 2 <= predictor["minReplicas"] <= predictor["maxReplicas"]:
            yield f"InferenceService: {predictor.get('autoScaling')}"
        (runtime,) = whole.kind("ServingRuntime")
        formats = [(one["name"], one["version"]) for one in runtime["spec"]["supportedModelFormats"]]
        wanted = predictor["model"]["modelFormat"]
        if (
            predictor["model"]["runtime"] != runtime["metadata"]["name"]
            or (wanted["name"], wanted["version"]) not in formats
        ):
            yield f"InferenceService asks for {predictor['model']['runtime']} and {wanted}"
    for query in queries(whole):
        if not re.match(rf"sum\(({'|'.join(records)})\{{", query):
            yield f"an autoscaler asks {query}; recorded are {sorted(records)}"
        yield from selected_series(whole, query)


TOKENIZER = PROJECT / "model_repository" / "tokenizer" / "config.pbtxt"
RUNBOOK = PROJECT / "docs" / "runbook.md"


def rules_file(whole: Whole) -> Path:
    return whole.deploy / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"


def selected_series(whole: Whole, expression: str) -> Iterator[str]:
    """Every series of an expression is this namespace's and these jobs'."""
    namespaces = {
        document["metadata"].get("namespace") for document in whole.documents if document["kind"] != "Namespace"
    }
    for name, labels in re.findall(r"([a-zA-Z_:][\w:]*)?\{([^{}]*)\}", expression):
        found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if {found.get("namespace")} != namespaces:
            yield f"{name or labels} is asked of the namespace {found.get('namespace')}, deployed is {namespaces}"
        edge = name.startswith("haproxy_") or ":edge_" in name
        jobs = ["text-classifier-proxy"] if edge else ["text-classifier"]
        if found.get("job") not in (jobs if name != "up" else ["text-classifier", "text-classifier-proxy"]):
            yield f"{name or labels} is asked of the job {found.get('job')}"
    bare = re.findall(
        r"\b(?:nv_\w+|haproxy_\w+|text_classifier_\w+|up)\b(?![{:|\"])", re.sub(r'"[^"]*"', "", expression)
    )
    if bare:
        yield f"{bare} are asked of every namespace and job"


def monitoring(whole: Whole) -> Iterator[str]:
    for monitor in whole.kind("PodMonitor"):
        name, spec = monitor["metadata"]["name"], monitor["spec"]
        (owner,) = whole.selected(spec["selector"]) or [None]
        labels, pod = whole.pods[owner] if owner else ({}, {"containers": []})
        if [endpoint["port"] for endpoint in spec["podMetricsEndpoints"]] != [
            "metrics"
        ] or "metrics" not in container_ports(pod):
            yield f"PodMonitor {name} scrapes {spec['podMetricsEndpoints']}"
        if labels.get(spec.get("jobLabel")) != name:
            yield f"PodMonitor {name} calls the job {labels.get(spec.get('jobLabel'))}"
        if "release" not in monitor["metadata"].get("labels", {}):
            yield f"PodMonitor {name} has no label for the operator"
    headings = {
        line.lstrip("# ").strip().lower()
        for line in RUNBOOK.read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    }
    for document in whole.kind("PrometheusRule"):
        if "release" not in document["metadata"].get("labels", {}):
            yield f"PrometheusRule {document['metadata']['name']} has no label for the operator"
        for rule in (rule for group in document["spec"]["groups"] for rule in group["rules"]):
            name = rule.get("alert") or rule["record"]
            yield from (f"{name}: {one}" for one in selected_series(whole, rule["expr"]))
            for metric in re.findall(r"\b(?:nv_|haproxy_|text_classifier)[\w:]+", rule["expr"]):
                if metric not in METRICS and metric not in recorded(whole):
                    yield f"{name}: nobody has the metric {metric}"
            if "alert" in rule:
                if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
                    yield f"{name} has the severity {rule.get('labels')}"
                anchor = rule.get("annotations", {}).get("runbook_url", "").rpartition("docs/runbook.md#")[2]
                if anchor != name.lower() or anchor not in headings or not rule["annotations"].get("summary"):
                    yield f"{name}: no entry #{anchor} in docs/runbook.md"


# Those that the rules use; the tests ask a real Prometheus for each.
METRICS = {
    *("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count"),
    *("nv_inference_pending_request_count", "nv_inference_request_summary_us"),
    *("text_classifier_held_requests", "text_classifier_refused_requests_total", "text_classifier"),
    *("haproxy_frontend_http_responses_total", "haproxy_backend_active_servers"),
}


def recorded(whole: Whole) -> set[str]:
    rules = (rule for one in whole.kind("PrometheusRule") for group in one["spec"]["groups"] for rule in group["rules"])
    return {rule["record"] for rule in rules if "record" in rule}


def images(whole: Whole) -> Iterator[str]:
    for name, (_, pod) in whole.pods.items():
        for container in pod["containers"]:
            if not re.fullmatch(r"[a-z.]+\.[a-z]+/[\w/.-]+:[\w.]+", container["image"]):
                yield f"{name}: no registry and tag in {container['image']}; does the kustomization rename it?"


def others(whole: Whole) -> Iterator[str]:
    namespaces = {d["metadata"].get("namespace") for d in whole.documents if d["kind"] != "Namespace"}
    if len(namespaces) != 1:
        yield f"several namespaces: {sorted(map(str, namespaces))}"
    for one in whole.kind("Namespace"):
        if one["metadata"]["name"] not in namespaces:
            yield f"makes the namespace {one['metadata']['name']}, and uses {namespaces}"
        if one["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace allows privileged pods"
