"""What a supervisor tells other commands about its server: a file in the run directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from build_scripts.core.errors import ServingError
from build_scripts.serving.keep.run_directory import STATE_FILE, is_held, run_directory


@dataclass(frozen=True)
class RunState:
    """Kept in a file that only its owner may read, because of control_key.

    releases: classifier name -> id of the release that tritonserver loaded at its start. log: of the running
    tritonserver. embedded: see `installation.Installation`.
    caches: the response cache is on.
    """

    pid: int
    http_url: str
    grpc_url: str
    repository: str
    staging: str
    log: str
    releases: dict[str, str]
    control_key: str
    embedded: bool = False
    metrics_address: str = ""
    caches: bool = False

    @property
    def ports(self) -> set[int]:
        """All ports that the server listens on."""
        places = (self.http_url, self.grpc_url, self.metrics_address)
        return {int(port) for place in places if (port := place.rpartition(":")[2]).isdecimal()}


def read_state(http_port: int) -> RunState:
    """Raises ServingError if no supervised server runs on that port."""
    directory = run_directory(http_port)
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        try:
            state = (directory / STATE_FILE).read_text(encoding="utf-8") if is_held(http_port) else ""
        except PermissionError as error:
            raise ServingError(f"the server on HTTP_PORT={http_port} is another user's: {directory}") from error
        return RunState(**json.loads(state))
    raise ServingError(f"no server of `make serve` runs on HTTP_PORT={http_port}; start one, or name its port")


def running_servers() -> Iterator[RunState]:
    """Every supervised server of this project and user."""
    for directory in run_directory(0).parent.glob("[0-9]*"):
        with contextlib.suppress(ServingError, OSError):
            yield read_state(int(directory.name))


def write_state(http_port: int, state: RunState) -> None:
    file = run_directory(http_port) / STATE_FILE
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(json.dumps(vars(state)), encoding="utf-8")
    new.replace(file)  # atomic: other commands read it at any moment
