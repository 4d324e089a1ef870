"""Where a server may listen: an address of this machine, and free ports.

Checked before anything starts: tritonserver itself would wait for ever, or end without a helpful word.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import replace

import psutil

from build_scripts.core.errors import ServingError
from build_scripts.core.options import Address


def resolved(address: Address) -> Address:
    """The address with a numeric host: given a name, tritonserver listens on an address of its choice."""
    try:
        return replace(address, host=str(ipaddress.IPv4Address(address.host)))
    except ValueError:
        pass
    try:
        if not address.host:
            raise OSError("empty")
        found = socket.getaddrinfo(address.host, None, socket.AF_INET, socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ServingError(
            f"HOST={address.host} is no IPv4 address, and no name of one ({error}); expected 127.0.0.1, 0.0.0.0 for "
            "all, or an address of this machine"
        ) from error
    return replace(address, host=str(found[4][0]))


def check_ports(address: Address) -> None:
    """Raise ServingError if a port is taken, before anything is started."""
    if len(set(address.ports.values())) < len(address.ports):
        found = ", ".join(f"{name}={port}" for name, port in address.ports.items())
        raise ServingError(f"the three ports must differ, got {found}")
    for name, port in address.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise ServingError(
                        f"HOST={address.host} is no IPv4 address of this machine ({error.strerror}); expected "
                        "127.0.0.1, 0.0.0.0 for all, or an address of this machine"
                    ) from error
                raise ServingError(
                    f"{name}={port} cannot be used on {address.host} ({error.strerror}); "
                    f"stop what listens there, or choose another port, from 1024 on, with {name}=…"
                ) from error


def listens(pid: int, port: int) -> bool:
    """Whether a process, or one that it started, listens on a port; then no other server answers there."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for one in family
            for connection in one.net_connections("tcp")
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
