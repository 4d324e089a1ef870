"""Cross-checks of autoscalers, scraping and alerts: metrics, records, jobs, namespaces, runbook entries."""

from __future__ import annotations

import re
from collections.abc import Iterator

from build_scripts.core.paths import PROJECT
from tests.support.manifests.whole import Whole, container_ports, rules_file

TOKENIZER = PROJECT / "model_repository" / "tokenizer" / "config.pbtxt"


RUNBOOK = PROJECT / "docs" / "runbook.md"


# Those that the rules use; the tests ask a real Prometheus for each.
METRICS = {
    *("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count"),
    *("nv_inference_pending_request_count", "nv_inference_request_summary_us"),
    *("text_classifier_held_requests", "text_classifier_refused_requests_total", "text_classifier"),
    *("text_classifier_answers_total", "text_classifier_probability_bucket", "text_classifier_probability_count"),
    *("haproxy_frontend_http_responses_total", "haproxy_backend_active_servers"),
}


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
                    yield f"{name}: no exporter has the metric {metric}"
            if "alert" in rule:
                if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
                    yield f"{name} has the severity {rule.get('labels')}"
                anchor = rule.get("annotations", {}).get("runbook_url", "").rpartition("docs/runbook.md#")[2]
                if anchor != name.lower() or anchor not in headings or not rule["annotations"].get("summary"):
                    yield f"{name}: no entry #{anchor} in docs/runbook.md"


def recorded(whole: Whole) -> set[str]:
    rules = (rule for one in whole.kind("PrometheusRule") for group in one["spec"]["groups"] for rule in group["rules"])
    return {rule["record"] for rule in rules if "record" in rule}
