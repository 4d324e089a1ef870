"""Run the soak: `python -m tests.soak --duration 600`. The Makefile passes its variables as TRITON_TC_NAME."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from build_scripts.core.errors import ServingError
from build_scripts.core.options import VARIABLE_PREFIX


def command(
    model: Annotated[str, typer.Option(envvar=VARIABLE_PREFIX + "MODEL", help="Checkpoint directory or hub id.")] = "",
    max_length: Annotated[
        int | None, typer.Option(envvar=VARIABLE_PREFIX + "MAX_LENGTH", help="Tokens a text.")
    ] = None,
    duration: Annotated[
        float, typer.Option(envvar=VARIABLE_PREFIX + "DURATION", help="Duration in seconds; at least 30.")
    ] = 600.0,
) -> None:
    """Send valid and hostile traffic, kill processes, and check every answer; writes build/soak."""
    from tests.soak.soak import check_duration, soak

    raise typer.Exit(0 if soak(model, max_length, check_duration(duration)) else 1)


if __name__ == "__main__":
    try:
        typer.run(command)
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
