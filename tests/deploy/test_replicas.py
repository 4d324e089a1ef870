"""Three replicas behind a real HAProxy, under load over HTTP and gRPC: updated one after the other, and killed."""

from __future__ import annotations

import time

import pytest

from tests.deploy.conftest import await_well
from tests.deploy.test_package import oci_volume
from tests.support.balancers import CONFIGURATIONS, proxy
from tests.support.deploy_tools import need
from tests.support.waiting import wait_for

pytestmark = pytest.mark.server
REPLICAS = {f"replica{number}": 10 + number for number in (1, 2, 3)}
BACKENDS = ("http", "grpc")
HEALTH = ("python", "-S", "-E", "-m", "build_scripts.serving.keep.health")


@pytest.fixture(scope="module")
def replicas(start):
    need("haproxy", "curl", "openssl")
    started = {name: start(number, cpus=1) for name, number in REPLICAS.items()}
    for replica in started.values():
        await_well(replica)
    return started


@pytest.fixture(scope="module")
def front(replicas, network, tmp_path_factory):
    with proxy("haproxy", network, tmp_path_factory.mktemp("haproxy")) as running:
        wait_for(lambda: all(map(running.is_up, REPLICAS)), "replicas are not up", limit_s=20)
        yield running


def counted(front, column: str = "stot") -> dict[str, list[int]]:
    """What each backend's replicas have served so far."""
    found = front.statistics()
    return {backend: [int(found[backend, name][column]) for name in REPLICAS] for backend in BACKENDS}


def test_requests_are_balanced_not_connections(front):
    """One client a protocol, with one connection."""
    before = counted(front)
    with front.load("http", 1, 300) as http, front.load("grpc", 1, 300) as grpc:
        pass
    assert (http["failed"], grpc["failed"]) == ({}, {})
    for backend in BACKENDS:
        served = [now - then for now, then in zip(counted(front)[backend], before[backend])]
        assert min(served) > 0.5 * max(served), (backend, served)


def test_busy_replicas_stay_in(front, replicas):
    """Twelve clients with 64 texts a request: none fails, no check does, and neither probe."""
    verdicts = []
    with front.load("http", 12, 48, texts=64) as found:
        for _ in range(20):
            verdicts += [front.is_up(name) for name in REPLICAS]
            for command in (HEALTH, (*HEALTH, "--live")):
                verdicts += [one.inside(*command, check=False).returncode == 0 for one in replicas.values()]
    assert found["failed"] == {}
    assert found["answered"] >= 48
    assert all(verdicts)


def replace(front, replicas, start, name, **options):
    """The steps of docs/production.md: out of the balancer, stopped, the new version started and well, and in again."""
    for backend in BACKENDS:
        front.admin(f"set server {backend}/{name} state drain")

    def drained() -> bool:
        found = front.statistics()
        return all(found[backend, name]["scur"] == "0" for backend in BACKENDS)

    wait_for(drained, f"{name} is not drained")
    replicas[name].signal("TERM")
    assert replicas[name].wait() == 0, replicas[name].said()
    replicas[name].remove()
    replicas[name] = start(REPLICAS[name], **options)
    await_well(replicas[name])
    for backend in BACKENDS:
        front.admin(f"set server {backend}/{name} state ready")
    wait_for(lambda: front.is_up(name), f"{name} is not up again", limit_s=20)


def test_all_replicas_are_updated_under_load_without_a_failed_request(front, replicas, start, packed, tmp_path):
    """To the models of an OCI volume, in the place of those in the image."""
    models = oci_volume(packed.directory, tmp_path / "volume")
    old = {name: replica.process.pid for name, replica in replicas.items()}
    with front.load("http", 4, 5000) as http, front.load("grpc", 4, 5000) as grpc:
        for name in REPLICAS:
            replace(front, replicas, start, name, models=models)
    print(f"http {http}, grpc {grpc}")
    assert (http["failed"], grpc["failed"]) == ({}, {})
    assert http["answered"] >= 5000 <= grpc["answered"]
    assert not any(replicas[name].process.pid == pid for name, pid in old.items())


def kill_one(front, replicas, start) -> tuple[dict, dict]:
    """A replica is killed under load, and comes back. Returns what the clients saw."""
    with front.load("http", 4, 1000) as http, front.load("grpc", 4, 1000) as grpc:
        time.sleep(2)
        replicas["replica2"].signal("KILL")
        replicas["replica2"].wait()
        time.sleep(2)
    replicas["replica2"].remove()
    replicas["replica2"] = start(REPLICAS["replica2"])
    await_well(replicas["replica2"])
    wait_for(lambda: front.is_up("replica2"), "replica2 is not up again", limit_s=20)
    return http, grpc


def test_killed_replica_costs_nothing_with_retries(front, replicas, start):
    for kind in kill_one(front, replicas, start):
        assert kind["failed"] == {}
        assert kind["answered"] >= 1000


def test_without_retries_a_kill_costs_at_most_the_requests_in_flight(front, replicas, start, tmp_path):
    """Four clients a protocol, so at most four requests of each."""
    text = (CONFIGURATIONS / "haproxy.cfg").read_text(encoding="utf-8")
    assert text.count("retry-on conn-failure empty-response") == 1
    (tmp_path / "haproxy.cfg").write_text(
        text.replace("retry-on conn-failure empty-response", "retry-on conn-failure"), encoding="utf-8"
    )
    with front.instead(tmp_path / "haproxy.cfg") as plain:
        wait_for(lambda: all(map(plain.is_up, REPLICAS)), "replicas are not up", limit_s=20)
        for kind in kill_one(plain, replicas, start):
            assert sum(kind["failed"].values()) <= 4, kind
