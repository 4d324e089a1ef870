"""Hosts and ports that a server cannot use are refused in one line before anything starts."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from build_scripts.benchmarks.subprocesses import free_ports
from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address
from build_scripts.serving.start.ports import check_ports, listens, resolved

PORTS = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT")


def test_free_ports_are_accepted():
    check_ports(Address("127.0.0.1", *free_ports(3)))


@pytest.mark.parametrize("ports", [(9000, 9000, 9002), (9000, 9001, 9000), (9000, 9001, 9001)])
def test_ports_must_differ(ports):
    named = ", ".join(f"{name}={port}" for name, port in zip(PORTS, ports))
    with pytest.raises(ServingError, match=f"must differ, got {named}$"):
        check_ports(Address("127.0.0.1", *ports))


@pytest.mark.parametrize("name", PORTS)
def test_rejects_taken_port_and_names_its_variable(name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [port if each == name else free for each, free in zip(PORTS, free_ports(3))]
        with pytest.raises(ServingError, match=rf"^{name}={port} cannot be used .*another port.* {name}="):
            check_ports(Address("127.0.0.1", *ports))


@pytest.mark.parametrize("host", ["192.0.2.1", "::1"], ids=["another machine's", "IPv6"])
def test_rejects_address_of_another_machine(host):
    with pytest.raises(ServingError, match=f"^HOST={host} is no IPv4 address of this machine"):
        check_ports(Address(host, *free_ports(3)))


@pytest.mark.parametrize("port", [-1, 0, 65536, 99999])
@pytest.mark.parametrize("name", PORTS)
def test_rejects_port_out_of_range(name, port):
    with pytest.raises(ServingError, match=f"^{name}={port} is no port; expected a number from 1 to 65535$"):
        Address(**{name.lower(): port})


def test_a_name_is_resolved():
    assert resolved(Address("localhost")).host == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "192.0.2.1"])
def test_an_address_is_not_resolved(host):
    assert resolved(Address(host)).host == host


@pytest.mark.parametrize("host", ["", "no-such-host.invalid", "::1", "256.1.1.1", "a b", "." * 300, "\u4e2d"])
def test_rejects_unresolvable_host(host):
    with pytest.raises(ServingError, match="is no IPv4 address, and no name of one") as refusal:
        resolved(Address(host))
    assert "\n" not in str(refusal.value)


def test_listens_is_true_for_the_owner_of_the_port_only():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        assert listens(os.getpid(), port)
        assert not listens(os.getpid(), free_ports(1)[0])
        with subprocess.Popen(["sleep", "60"]) as other:
            assert not listens(other.pid, port)
            other.kill()
