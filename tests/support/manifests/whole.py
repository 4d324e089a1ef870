"""The documents of one kustomization, and what the cross-checks ask of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NAME = "app.kubernetes.io/name"


CLIENT = "text-classifier-client"


# Ports of the server's three protocols, by the name that manifests give them; the launcher's options change them.
SERVER_PORTS = {"http": ("--http-port", 8000), "grpc": ("--grpc-port", 8001), "metrics": ("--metrics-port", 8002)}


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


def container_ports(pod: dict) -> dict[str, int]:
    return {port.get("name", ""): port["containerPort"] for one in pod["containers"] for port in one["ports"]}


def argument(container: dict, option: str, default: str) -> str:
    words = [*container.get("command", []), *container.get("args", [])]
    return words[words.index(option) + 1] if option in words else default


def environment(pod: dict) -> dict[str, str]:
    return {one["name"]: one["value"] for container in pod["containers"] for one in container.get("env", [])}


def proxy_configuration(whole: Whole) -> str:
    return (whole.deploy / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")


def rules_file(whole: Whole) -> Path:
    return whole.deploy / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
