"""Cross-checks of what finds pods: selectors, Services, routes, NetworkPolicies, namespaces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.support.manifests.whole import (
    CLIENT,
    SERVER_PORTS,
    Whole,
    argument,
    container_ports,
    environment,
    proxy_configuration,
)


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


def others(whole: Whole) -> Iterator[str]:
    namespaces = {d["metadata"].get("namespace") for d in whole.documents if d["kind"] != "Namespace"}
    if len(namespaces) != 1:
        yield f"several namespaces: {sorted(map(str, namespaces))}"
    for one in whole.kind("Namespace"):
        if one["metadata"]["name"] not in namespaces:
            yield f"makes the namespace {one['metadata']['name']}, and uses {namespaces}"
        if one["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace allows privileged pods"
