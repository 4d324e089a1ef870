"""Mistakes in the manifests, one of each kind that people make. The tests plant each and expect it to be noticed."""

from __future__ import annotations

from typing import NamedTuple

DEPLOYMENT = "kubernetes/base/deployment.yaml"
PROXY = "kubernetes/components/proxy/deployment.yaml"
RULES = "kubernetes/components/monitoring/prometheus-rule.yaml"
EDGE_RULES = "kubernetes/components/edge-monitoring/prometheus-rule.yaml"
SCALER = "kubernetes/components/keda/scaled-object.yaml"
HPA = "kubernetes/components/hpa/hpa.yaml"
RUNTIME = "kubernetes/kserve/serving-runtime.yaml"
SERVICE = "kubernetes/kserve/inference-service.yaml"
POLICY = "kubernetes/base/network-policy.yaml"
MONITOR = "kubernetes/components/monitoring/pod-monitor.yaml"
PRODUCTION = "kubernetes/overlays/production/kustomization.yaml"
NAME = "app.kubernetes.io/name: text-classifier"


class Mistake(NamedTuple):
    name: str
    file: str
    before: str
    after: str


MISTAKES = [
    # fields and values
    Mistake("misspelt field of a probe", DEPLOYMENT, "failureThreshold: 6", "failureThresholds: 6"),
    Mistake("misspelt field of a port", "kubernetes/base/service.yaml", "targetPort: http", "targetport: http"),
    Mistake("misspelt field of a policy", POLICY, "policyTypes:", "policyType:"),
    Mistake("misspelt field of KEDA", SCALER, "metricType:", "metricsType:"),
    Mistake("misspelt setting of KEDA's scaler", SCALER, "serverAddress:", "serverAdress:"),
    Mistake("misspelt field of a rule", RULES, "          for: 1m", "          fore: 1m"),
    Mistake("misspelt field of a PodMonitor", MONITOR, "interval:", "intervall:"),
    Mistake("misspelt field of KServe's runtime", RUNTIME, "protocolVersions:", "protocolVersion:"),
    Mistake("misspelt field of an InferenceService", SERVICE, "storageUri:", "storageURI:"),
    Mistake("misspelt list in a kustomization", PRODUCTION, "components:", "component:"),
    Mistake("number that must be text", SCALER, 'threshold: "8"', "threshold: 8"),
    Mistake("unknown unit of memory", DEPLOYMENT, "memory: 1536Mi", "memory: 1536MB"),
    # labels and selectors
    Mistake("Service that selects nothing", "kubernetes/base/service.yaml", NAME, f"{NAME}s"),
    Mistake("headless Service that selects nothing", "kubernetes/base/service-headless.yaml", NAME, f"{NAME}s"),
    Mistake("budget of another Deployment", "kubernetes/base/pod-disruption-budget.yaml", NAME, f"{NAME}-proxy"),
    Mistake(
        "policy that selects every pod", POLICY, f"podSelector: {{ matchLabels: {{ {NAME} }} }}", "podSelector: {}"
    ),
    Mistake("PodMonitor that selects nothing", MONITOR, NAME, f"{NAME}s"),
    Mistake("job called after nothing", MONITOR, "jobLabel: app.kubernetes.io/name", "jobLabel: app"),
    Mistake("proxy without the clients' label", PROXY, '        text-classifier-client: "true"\n', ""),
    # ports
    Mistake(
        "Service to a port that is not there", "kubernetes/base/service.yaml", "targetPort: grpc", "targetPort: rpc"
    ),
    Mistake("Service that crosses its ports", "kubernetes/base/service.yaml", "targetPort: http", "targetPort: grpc"),
    Mistake("container port that nobody listens on", DEPLOYMENT, "containerPort: 8001", "containerPort: 8081"),
    Mistake("scraped port that is not there", MONITOR, "port: metrics", "port: metric"),
    Mistake("policy that forgets gRPC", POLICY, "        - { protocol: TCP, port: grpc }\n", ""),
    Mistake("policy that opens a missing port", POLICY, "port: metrics", "port: metric"),
    Mistake(
        "proxy that may not reach gRPC", "kubernetes/components/proxy/network-policy.yaml", "port: 8001", "port: 8011"
    ),
    Mistake("proxy that looks for other pods", PROXY, "value: text-classifier-pods", "value: text-classifier"),
    Mistake("KServe's port without a name", RUNTIME, "{ name: http, containerPort", "{ containerPort"),
    Mistake("KServe's port 80 to gRPC", RUNTIME, "name: http, containerPort: 8080", "name: grpc2, containerPort: 9001"),
    # probes
    Mistake("probe of a module that is gone", DEPLOYMENT, "serving.keep.health]", "serving.health]"),
    Mistake("readiness that asks for life", DEPLOYMENT, "keep.health]", "keep.health, --live]"),
    Mistake("liveness that asks for readiness", DEPLOYMENT, ", --live]", "]"),
    Mistake("probe that a busy machine fails", DEPLOYMENT, "timeoutSeconds: 5", "timeoutSeconds: 1"),
    Mistake("probe of another port", RUNTIME, "http://127.0.0.1:8080", "http://127.0.0.1:8000"),
    Mistake("start that may take a minute", DEPLOYMENT, "failureThreshold: 150", "failureThreshold: 20"),
    Mistake("proxy's probe of another path", PROXY, "path: /live", "path: /healthz"),
    # stopping
    Mistake("grace shorter than the drain", DEPLOYMENT, "GracePeriodSeconds: 90", "GracePeriodSeconds: 20"),
    Mistake("KServe without a grace period", SERVICE, "    terminationGracePeriodSeconds: 90\n", ""),
    Mistake("drain that readiness does not notice", DEPLOYMENT, '"15"', '"5"'),
    Mistake(
        "proxy without a preStop hook",
        PROXY,
        "preStop: { exec: { command: [sleep,",
        "preStop: { exec: { command: [true,",
    ),
    Mistake("rollout that takes a replica away", DEPLOYMENT, "maxUnavailable: 0", "maxUnavailable: 1"),
    Mistake("option that the launcher lacks", DEPLOYMENT, "--drain,", "--drain-seconds,"),
    # logs
    Mistake("log that no collector parses", DEPLOYMENT, ", --log, json]", "]"),
    # security
    Mistake("writable root", DEPLOYMENT, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    Mistake("capabilities kept", RUNTIME, "capabilities: { drop: [ALL] }", "capabilities: { drop: [NET_RAW] }"),
    Mistake("another user than the image's", DEPLOYMENT, "runAsUser: 1000", "runAsUser: 1001"),
    Mistake("another user than HAProxy's", PROXY, "runAsUser: 99", "runAsUser: 100"),
    Mistake(
        "service account's token mounted",
        DEPLOYMENT,
        "automountServiceAccountToken: false",
        "automountServiceAccountToken: true",
    ),
    Mistake("key that everybody reads", PROXY, ", defaultMode: 0440", ""),
    Mistake("secret that nobody makes", PROXY, "secretName: text-classifier-tls", "secretName: tls"),
    Mistake(
        "certificate looked for elsewhere",
        PROXY,
        "value: /etc/haproxy/tls/service.pem",
        "value: /etc/haproxy/service.pem",
    ),
    # volumes and images
    Mistake("volume that is not mounted", DEPLOYMENT, "            - { name: tmp, mountPath: /tmp }\n", ""),
    Mistake(
        "configuration under another name",
        PROXY,
        "configMap: { name: text-classifier-proxy }",
        "configMap: { name: proxy }",
    ),
    Mistake(
        "image that nothing renames",
        "kubernetes/base/kustomization.yaml",
        "- name: text-classifier\n",
        "- name: classifier\n",
    ),
    Mistake(
        "KServe's image that nothing renames",
        "kubernetes/kserve/kustomization.yaml",
        "- name: text-classifier\n",
        "- name: registry.example/text-classifier\n",
    ),
    Mistake("memory that asks for more than its limit", DEPLOYMENT, "memory: 1Gi", "memory: 2Gi"),
    # scaling
    Mistake("scaler of another Deployment", SCALER, "{ name: text-classifier }", "{ name: classifier }"),
    Mistake(
        "metric that nobody records", HPA, "name: text_classifier_waiting_requests", "name: text_classifier_waiting"
    ),
    Mistake("query of every namespace", SCALER, 'namespace="text-classifier", ', ""),
    Mistake("query of another namespace", SERVICE, 'namespace="text-classifier"', 'namespace="staging"'),
    Mistake("threshold above the refusals", HPA, 'averageValue: "8"', 'averageValue: "800"'),
    Mistake(
        "replicas set twice",
        "kubernetes/components/keda/kustomization.yaml",
        '"op": "remove"',
        '"op": "test", "value": 2',
    ),
    Mistake("KServe that scales by CPU", SERVICE, "autoscalerClass: keda", "autoscalerClass: hpa"),
    Mistake("runtime that is not there", SERVICE, "runtime: text-classifier", "runtime: triton"),
    # alerts
    Mistake(
        "alert on every team's series",
        RULES,
        'absent(up{namespace="text-classifier", job="text-classifier"})',
        "absent(up)",
    ),
    Mistake("alert on a metric that nobody has", RULES, "resets(nv_inference_count{", "resets(nv_inference_counts{"),
    Mistake("alert on another job", EDGE_RULES, 'job="text-classifier-proxy"', 'job="proxy"'),
    Mistake("alert without an entry in the runbook", RULES, "alert: TextClassifierSlow", "alert: TextClassifierLate"),
    Mistake("alert without a severity", EDGE_RULES, "severity: critical", "level: critical"),
    Mistake(
        "rule that the operator does not select", RULES, "labels: { release: kube-prometheus-stack }", "labels: {}"
    ),
    # the candidate
    Mistake(
        "candidate that shares the live pods",
        "kubernetes/canary/pods/kustomization.yaml",
        '"path": "/spec/selector/app.kubernetes.io~1name", "value": "text-classifier-canary"',
        '"path": "/spec/selector/app.kubernetes.io~1name", "value": "text-classifier"',
    ),
    Mistake(
        "route to a port that is not there",
        "kubernetes/canary/routes.yaml",
        "text-classifier-canary, port: 8000, weight",
        "text-classifier-canary, port: 80, weight",
    ),
    Mistake("misspelt weight", "kubernetes/canary/routes.yaml", "weight: 5", "wieght: 5"),
]
