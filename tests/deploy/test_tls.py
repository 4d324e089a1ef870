"""TLS over gRPC, both sides with certificates: the real server, and the clients that people use."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.paths import PROJECT
from build_scripts.serving.start.arguments import Tls, tls_arguments
from tests.support.containers import run
from tests.support.deploy_tools import need
from tests.support.servers import running
from tests.support.waiting import HANG_S

pytestmark = pytest.mark.server
NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, and a server and a client that it knows: <name>.pem and <name>.key."""
    need("openssl")
    directory = tmp_path_factory.mktemp("pki")
    new = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    run(*new, "-subj", "/CN=authority", "-keyout", "authority.key", "-out", "authority.pem", cwd=directory)
    for name in ("server", "client"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-CA", "authority.pem", "-CAkey", "authority.key")
        run(*new, "-subj", f"/CN={name}", "-addext", NAMES, *files, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def served(packed, pki, tmp_path_factory):
    options = ("--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-ca", "authority.pem")
    files = [str(pki / option) if option.startswith(("server", "authority")) else option for option in options]
    output = tmp_path_factory.mktemp("tls") / "output.txt"
    with running(packed.directory / "model_repository", output, "--host", "0.0.0.0", *files) as server:
        yield server


def classify(served, *options: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "build_scripts",
        "classify",
        "--text",
        "Midfielder scores twice as champions win away",
    ]
    return subprocess.run(
        [*command, "--grpc-port", str(served.address.grpc_port), *options],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_a_client_with_a_certificate_is_answered(served, pki):
    mine = ("--tls-cert", str(pki / "client.pem"), "--tls-key", str(pki / "client.key"))
    done = classify(served, *mine, "--tls-ca", str(pki / "authority.pem"))
    assert (done.returncode, done.stdout.split("\t")[0]) == (0, "7"), done.stderr


@pytest.mark.parametrize("trusts", [True, False])
def test_a_client_without_one_is_not(served, pki, trusts):
    done = classify(served, *(("--tls-ca", str(pki / "authority.pem")) if trusts else ()))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_http_stays_on_loopback_and_health_asks_there(served):
    health = [sys.executable, "-m", "build_scripts", "health", "--http-port", str(served.address.http_port)]
    assert subprocess.run(health, cwd=PROJECT, capture_output=True, timeout=HANG_S).returncode == 0
    with pytest.raises(ConnectionRefusedError):  # every address of 127/8 is this machine's
        socket.create_connection(("127.0.0.2", served.address.http_port), 5)
    with socket.create_connection(("127.0.0.2", served.address.grpc_port), 5):
        pass


def test_wrong_tls_options_are_one_line(pki, tmp_path):
    (tmp_path / "text").write_text("no certificate", encoding="utf-8")
    for files, said in (
        ((pki / "server.pem", None, None), "belong together"),
        ((pki / "none.pem", pki / "server.key", None), "TLS_CERT=.*none.pem: No such file"),
        ((pki / "server.pem", tmp_path / "text", None), "TLS_KEY=.*text is no PEM file"),
    ):
        with pytest.raises(ServingError, match=said):
            Tls(*files)
    with pytest.raises(ServingError, match="TLS_CA alone"):
        tls_arguments(Tls(authority=pki / "authority.pem"), "127.0.0.1")
    with pytest.raises(ServingError, match="HTTP stays on 127"):
        tls_arguments(Tls(pki / "server.pem", pki / "server.key"), "192.0.2.1")
