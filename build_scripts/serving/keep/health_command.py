"""The command `health`, with all its options."""

from __future__ import annotations

from build_scripts.core.command_line import command
from build_scripts.core.names import check_name
from build_scripts.core.options import Address
from build_scripts.serving.keep.health import report


@command("python -m build_scripts health --http-port 9000")
def health(
    url: str = "",
    host: str = Address.host,
    http_port: int = Address.http_port,
    timeout: float = 2.0,
    live: bool = False,
    name: str = "",
) -> int:
    """Exit 0 if the server may be sent requests; 3 if it lives but is overloaded or draining; 1 otherwise. Asks the
    supervisor, or for an inference: of the classifier that NAME names, or where there is no supervisor.
    """
    url = url or Address(host, http_port).http_url
    code, line = report(url, timeout, live=live, names=[check_name(name)] if name else [])
    print(line)
    return code
