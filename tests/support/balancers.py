"""The proxies of deploy/proxy as they are, in the namespace of a test network, with a certificate made for them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from build_scripts.core.paths import PROJECT
from tests.support.containers import NETWORK, Namespaces, run
from tests.support.deploy_tools import PATH
from tests.support.replica_load import TEXT
from tests.support.waiting import HANG_S, wait_for

CONFIGURATIONS = PROJECT / "deploy" / "proxy"
# What curl is given: a path and arguments.
TEXT_REQUEST = ("/v2/models/text_classifier/generate", ("-d", json.dumps({"TEXT": TEXT})))
HOST, PORT = f"{NETWORK}.1", 8443
INFER = "/v2/models/text_classifier/infer"
# Last part of the address of a stand-in for a replica.
REPLICA = 31


def certificate(directory: Path, host: str = HOST) -> Path:
    """A new certificate for an address. Writes key and certificate to service.pem, too. Returns the certificate."""
    directory.mkdir(parents=True, exist_ok=True)
    key, made = directory / "key.pem", directory / "certificate.pem"
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=IP:{host},DNS:localhost"),
        *("-keyout", key, "-out", made),
    )
    (directory / "service.pem").write_text(made.read_text() + key.read_text(), encoding="utf-8")
    return made


@dataclass
class Proxy:
    """HAProxy or nginx, with its configuration of deploy/proxy or another.

    directory: holds the certificate, the log and HAProxy's admin socket. environment: further variables for HAProxy.
    number: the last part of its address.
    """

    kind: str
    network: Namespaces
    directory: Path
    configuration: Path
    environment: dict[str, str] = field(default_factory=dict)
    number: int = 1

    @property
    def host(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def log(self) -> Path:
        return self.directory / "output.txt"

    def start(self) -> None:
        """Run it, and wait until it answers; whether a replica is up is the caller's to wait for."""
        certificate(self.directory, self.host)
        (self.directory / "temp").mkdir(exist_ok=True)
        file = Path(shutil.copy(self.configuration, self.directory))
        commands = {
            "haproxy": ["haproxy", "-W", "-db", "-f", file],
            "nginx": ["nginx", "-c", file, "-p", self.directory, "-e", "stderr", "-g", "daemon off;"],
        }
        environment = {
            "PATH": PATH,
            "CERTIFICATE": str(self.directory / "service.pem"),
            "ADMIN_SOCKET": str(self.directory / "admin.sock"),
            **self.environment,
        }
        log = self.log
        namespace = self.network.balancer if self.number == 1 else self.network.add(self.number)
        with log.open("wb") as output:
            command = [*self.network.enter(namespace), *map(str, commands[self.kind])]
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

        def answers() -> bool:
            assert self.process.poll() is None, log.read_text(encoding="utf-8")
            with contextlib.suppress(AssertionError):  # nothing listens yet
                return self.curl("/")[0] in (401, 404)
            return False

        wait_for(answers, f"{self.kind} does not answer")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(HANG_S)

    @contextlib.contextmanager
    def instead(self, configuration: Path) -> Iterator[Proxy]:
        """Another of the kind, with another configuration, in the place of this one until the block ends."""
        self.stop()
        try:
            with proxy(self.kind, self.network, self.directory / "instead", configuration) as other:
                yield other
        finally:
            self.start()

    def curl(self, path: str, *arguments: str, version: str = "--http1.1") -> tuple[int, str]:
        """Status and body of a request from inside the network. The path is sent as it is."""
        done = run(
            *self.network.enter(self.network.balancer),
            *("curl", "-sS", "--path-as-is", "--max-time", "60", version, "-w", "\n%{http_code}"),
            *("--cacert", self.directory / "certificate.pem", *arguments, f"https://{self.host}:{PORT}{path}"),
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def admin(self, command: str) -> str:
        """A command to HAProxy's runtime API."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.directory / "admin.sock"))
            connection.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def statistics(self) -> dict[tuple[str, str], dict[str, str]]:
        """(backend, server) -> what HAProxy counts of it."""
        rows = csv.DictReader(io.StringIO(self.admin("show stat").removeprefix("# ")))
        return {(row["pxname"], row["svname"]): row for row in rows}

    def is_up(self, replica: str) -> bool:
        found = self.statistics()
        return all(found[backend, replica]["status"] == "UP" for backend in ("http", "grpc"))

    @contextlib.contextmanager
    def load(self, kind: str, clients: int, requests: int, texts: int = 1) -> Iterator[dict]:
        """Clients that send at least `requests` while the block runs; the dict is filled at its end."""
        command = [sys.executable, "-m", "tests.support.replica_load", "--kind", kind, "--host", HOST]
        command += ["--port", str(PORT), "--ca", str(self.directory / "certificate.pem")]
        command += ["--clients", str(clients), "--requests", str(requests), "--texts", str(texts)]
        process = subprocess.Popen(
            [*self.network.enter(self.network.balancer), *command],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found: dict = {}
        try:
            yield found
            found.update(json.loads(process.communicate(timeout=HANG_S + 30)[0]))
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def proxy(
    kind: str,
    network: Namespaces,
    directory: Path,
    configuration: Path | None = None,
    number: int = 1,
    **environment: str,
) -> Iterator[Proxy]:
    """A running proxy with its shipped configuration or another. environment: variables for HAProxy."""
    shipped = next(CONFIGURATIONS.glob(f"{kind}.c*"))
    running = Proxy(kind, network, directory, configuration or shipped, environment, number)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def replica(network: Namespaces, directory: Path, *options: str) -> Iterator[Path]:
    """A stand-in for the one replica; yields the file of what it was sent."""
    seen = directory / "seen"
    seen.touch()
    command = [*network.enter(network.add(REPLICA)), sys.executable, "-m", "tests.support.echo", "8000", str(seen)]
    process = subprocess.Popen([*command, *options], cwd=PROJECT)
    try:
        inside = network.enter(network.balancer)
        url = f"http://{NETWORK}.{REPLICA}:8000/v2"
        wait_for(lambda: run(*inside, "curl", "-s", url, check=False).returncode == 0, "no stand-in")
        yield seen
    finally:
        process.kill()
        process.wait()
