"""A new certificate, a stop and a rollout of the proxy, each under load, in front of a stand-in for a replica."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
import time

import yaml

from build_scripts.core.paths import PROJECT
from tests.support.balancers import INFER, certificate, replica
from tests.support.waiting import HANG_S, wait_for

POD = PROJECT / "deploy" / "kubernetes" / "components" / "proxy" / "deployment.yaml"
# Until every node has heard that a pod ends, connections still go to it.
FORGOTTEN_AFTER_S = 5


def test_a_new_certificate_costs_no_request(network, started, tmp_path):
    with replica(network, tmp_path):
        front = started()
        old, new = front.directory / "certificate.pem", certificate(tmp_path / "new")
        both = tmp_path / "both.pem"
        both.write_text(old.read_text() + new.read_text(), encoding="utf-8")
        answered, stopped = [], threading.Event()

        def ask() -> None:
            while not stopped.is_set():
                answered.append(front.curl(INFER, "-d", "{}", "--cacert", str(both))[0])

        clients = [threading.Thread(target=ask) for _ in range(2)]
        for client in clients:
            client.start()
        try:
            wait_for(lambda: len(answered) >= 10, "no answers")
            name = front.directory / "service.pem"
            payload = (tmp_path / "new" / "service.pem").read_text(encoding="utf-8")
            assert "Transaction created" in front.admin(f"set ssl cert {name} <<\n{payload}")
            assert "Success" in front.admin(f"commit ssl cert {name}")
            before = len(answered)
            wait_for(lambda: len(answered) >= before + 10, "no answers")
        finally:
            stopped.set()
            for client in clients:
                client.join(HANG_S)
        assert set(answered) == {200}
        assert front.curl(INFER, "-d", "{}", "--cacert", str(new))[0] == 200


def test_a_stopped_proxy_answers_what_it_has(network, started, tmp_path):
    """On SIGUSR1, which the image's STOPSIGNAL is. The pod's preStop hook comes before it."""
    with replica(network, tmp_path, "--slow-answer", "3") as seen:
        front = started()
        answered: list[int] = []
        client = threading.Thread(target=lambda: answered.append(front.curl(INFER, "-d", "{}")[0]))
        client.start()
        wait_for(lambda: "x-slow" in seen.read_text(encoding="utf-8") or seen.stat().st_size > 0, "nothing sent")
        time.sleep(0.2)
        front.process.send_signal(signal.SIGUSR1)
        client.join(HANG_S)
        assert answered == [200]
        assert front.process.wait(HANG_S) == 0


def test_a_rollout_of_the_proxy_refuses_no_connection(network, started, tmp_path):
    """As in a cluster: the Service forgets a pod that ends some seconds late, while its preStop hook runs."""
    pod = yaml.safe_load(POD.read_text(encoding="utf-8"))["spec"]["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    answered: list[int] = []
    stopped = threading.Event()
    with replica(network, tmp_path):
        old = started()
        service = [old]

        def ask() -> None:
            while not stopped.is_set():
                try:
                    answered.append(random.choice(service).curl(INFER, "-d", "{}")[0])
                except AssertionError:  # no connection
                    answered.append(0)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            service.append(started(number=32))
            forgotten = threading.Timer(FORGOTTEN_AFTER_S, service.remove, [old])
            forgotten.start()
            subprocess.run(hook, check=True)
            old.process.send_signal(signal.SIGUSR1)
            assert old.process.wait(pod["terminationGracePeriodSeconds"] - int(hook[1])) == 0
            forgotten.join()
        finally:
            stopped.set()
            for client in clients:
                client.join(HANG_S)
    assert len(answered) > 20
    assert set(answered) == {200}
