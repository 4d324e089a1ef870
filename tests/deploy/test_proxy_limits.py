"""What the proxies do about slow checks, floods, keys and logs, in front of stand-ins for replicas."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_scripts.core.paths import PROJECT
from tests.support.balancers import HOST, INFER, PORT, REPLICA, Proxy, replica
from tests.support.containers import NETWORK, run
from tests.support.waiting import HANG_S, wait_for

# Memory of the proxy's pod, in deploy/kubernetes/components/proxy/deployment.yaml.
POD_MIB = 512


def checked(front: Proxy) -> str:
    """The verdict of the first finished health check of the HTTP backend."""
    status = front.statistics()["http", "replica1"]["check_status"]
    return "" if status.startswith("*") or status == "INI" else status


def test_slow_check_does_not_take_a_replica_out(network, started, tmp_path):
    """A busy replica answers a check later than the next one is due, and sooner than a request times out."""
    with replica(network, tmp_path, "--slow-check", "4"):
        front = started()
        wait_for(lambda: checked(front), "no check ended")
        assert (checked(front), front.statistics()["http", "replica1"]["status"]) == ("L7OK", "UP")


def test_failed_check_takes_a_replica_out(network, started, tmp_path):
    with replica(network, tmp_path, "--check-status", "500"):
        front = started()
        wait_for(lambda: front.statistics()["http", "replica1"]["status"] == "DOWN", "the replica stays up")
        assert checked(front) == "L7STS"


def test_refused_check_leaves_a_replica_up(network, started, tmp_path):
    with replica(network, tmp_path, "--check-status", "503"):
        front = started()
        wait_for(lambda: checked(front), "no check ended")
        assert front.statistics()["http", "replica1"]["status"] == "UP"


def test_check_asks_the_named_classifier(network, started, tmp_path):
    with replica(network, tmp_path) as seen:
        front = started(CLASSIFIER="sentiment")
        wait_for(lambda: checked(front), "no check ended")
        assert "POST /v2/models/sentiment/infer" in seen.read_text(encoding="utf-8")
        assert "POST /v2/models/text_classifier/infer" not in seen.read_text(encoding="utf-8")


@contextlib.contextmanager
def flood(front: Proxy, number: int, connections: int, streams: int) -> Iterator[subprocess.Popen]:
    """Another client, with the address .number, that opens connections and streams and completes no body."""
    clients = front.network.enter(front.network.balancer)
    address = f"{NETWORK}.{number}"
    run(*clients, "ip", "addr", "add", f"{address}/32", "dev", "lo")
    command = [*clients, sys.executable, "-m", "tests.support.http2_flood", "--host", HOST, "--port", str(PORT)]
    command += ["--source", address, "--connections", str(connections), "--streams", str(streams), "--body", "60000"]
    try:
        with subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()
    finally:
        run(*clients, "ip", "addr", "del", f"{address}/32", "dev", "lo")


def report(flooding: subprocess.Popen) -> dict[str, int]:
    """Connections and streams that the proxy accepted."""
    assert flooding.stdout.readline() == "flooding\n"
    return json.loads(flooding.communicate(timeout=HANG_S)[0])


def test_a_source_has_a_limit_of_connections_and_of_streams(started):
    front = started(SOURCE_CONNECTIONS="5")
    with flood(front, 51, connections=8, streams=40) as busy:
        assert report(busy) == {"connections": 5, "streams": 5 * 20}


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_http2_flood_fits_into_the_pods_memory(network, started, tmp_path, kind):
    """Two addresses use up their limits; another address is answered all the time."""
    with replica(network, tmp_path), contextlib.ExitStack() as stack:
        front = started(kind, patient=True)
        floods = [stack.enter_context(flood(front, 51 + n, connections=101, streams=100)) for n in range(2)]
        while select.select([one.stdout for one in floods], [], [], 0)[0] != [one.stdout for one in floods]:
            assert front.curl("/")[0] == 404
        assert front.curl(INFER, "-d", "{}")[0] == 200
        peaks = [int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024 for status in statuses(front.process.pid)]
        print(f"{kind}: {peaks} MiB at the peak")
        assert 16 < sum(peaks) < POD_MIB


def statuses(pid: int) -> list[str]:
    """/proc/<pid>/status of a process and of its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [Path(f"/proc/{one}/status").read_text(encoding="utf-8") for one in [str(pid), *children]]


def keys(directory: Path, **clients: str) -> str:
    """A file of API keys, as API_KEYS names it."""
    lines = [f"{hashlib.sha256(key.encode()).hexdigest()} {name}\n" for name, key in clients.items()]
    (directory / "keys").write_text("".join(lines), encoding="utf-8")
    return str(directory / "keys")


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_model_controls_key_is_dropped(network, started, tmp_path, kind):
    with replica(network, tmp_path) as seen:
        front = started(kind)
        assert front.curl(INFER, "-d", "{}", "-H", "triton-control: abc", "-H", "x-kept: yes")[0] == 200
        lines = seen.read_text(encoding="utf-8").lower()
    assert "x-kept: yes" in lines
    assert "triton-control" not in lines


def test_only_clients_with_a_key_are_answered(network, started, tmp_path):
    with replica(network, tmp_path) as seen:
        front = started(API_KEYS=keys(tmp_path, shop="a-key", press="another"))
        assert front.curl(INFER, "-d", "{}")[0] == 401
        assert front.curl(INFER, "-d", "{}", "-H", "x-api-key: wrong")[0] == 401
        assert front.curl(INFER, "-d", "{}", "-H", f"x-api-key: {hashlib.sha256(b'a-key').hexdigest()}")[0] == 401
        assert front.curl(INFER, "-d", "{}", "-H", "x-api-key: a-key")[0] == 200
        assert "a-key" not in seen.read_text(encoding="utf-8")
        assert [line["client"] for line in access_lines(front) if line["status"] == 200] == ["shop"]


def test_a_clients_limit_leaves_the_others_alone(network, started, tmp_path):
    with replica(network, tmp_path):
        front = started(API_KEYS=keys(tmp_path, shop="a-key", press="another"), CLIENT_REQUESTS="3")
        # In one connection, because the limit counts 10 s.
        requests = ["-o", "/dev/null", f"https://{HOST}:{PORT}{INFER}"] * 5
        options = ("-s", "-w", "%{http_code}\n", "-d", "{}", "-H", "x-api-key: a-key")
        trust = ("--cacert", front.directory / "certificate.pem")
        done = run(*network.enter(network.balancer), "curl", *options, *trust, *requests)
        statuses = done.stdout.split()
        assert statuses[:3] == ["200"] * 3
        assert "429" in statuses
        assert front.curl(INFER, "-d", "{}", "-H", "x-api-key: another")[0] == 200


def access_lines(front: Proxy) -> list[dict]:
    lines = front.log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_each_request_has_a_line_in_the_log_without_its_text(network, started, tmp_path, kind):
    secret = "Midfielder scores twice"
    with replica(network, tmp_path):
        front = started(kind)
        front.curl(INFER, "-d", json.dumps({"TEXT": secret}), "-H", f"x-note: {secret}")
        front.curl('/not"there?text=Midfielder', "-g")
        wait_for(lambda: {200, 404} <= {line["status"] for line in access_lines(front)}, "no lines")
        (answered,) = (line for line in access_lines(front) if line["path"] == INFER)
        assert (answered["method"], answered["source"]) == ("POST", HOST)
        assert answered["replica"] in ("replica1", f"{NETWORK}.{REPLICA}:8000")
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|\+)", answered["time"])
        assert '/not"there' in [line["path"] for line in access_lines(front)]
        assert "Midfielder" not in front.log.read_text(encoding="utf-8")


def scrape(front: Proxy, path: str) -> tuple[int, str]:
    """From the port for Prometheus and probes."""
    url = f"http://{HOST}:8405{path}"
    done = run(*front.network.enter(front.network.balancer), "curl", "-s", "-w", "\n%{http_code}", url)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_metrics_and_readiness_of_the_proxy(network, started, tmp_path):
    with replica(network, tmp_path):
        front = started()
        front.curl(INFER, "-d", "{}")
        status, body = scrape(front, "/metrics")
        assert status == 200
        assert re.search(r'haproxy_frontend_http_responses_total\{proxy="service",code="2xx"\} [1-9]', body)
        assert re.search(r'haproxy_backend_active_servers\{proxy="http"\} 1', body)
        assert scrape(front, "/live")[0] == scrape(front, "/ready")[0] == 200
        assert front.curl("/metrics")[0] == 404
    wait_for(lambda: scrape(front, "/ready")[0] == 503, "ready without a replica")
    assert scrape(front, "/live")[0] == 200
