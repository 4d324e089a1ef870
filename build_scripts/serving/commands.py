"""Commands that serve, and that ask a running server: serve, classify, health, doctor, release, rollback, status."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from build_scripts.core.command_line import PROGRAM, command
from build_scripts.core.names import ENSEMBLE, check_name
from build_scripts.core.options import Address, BuildOptions, ClassifyOptions
from build_scripts.serving.doctor import doctor
from build_scripts.serving.keep.health_command import health
from build_scripts.serving.start.arguments import ServerOptions, Tls

HTTP_PORT = Address.http_port
# Accuracy that EVALUATE lets a release lose.
WORSE_BY = 0.01


@command(f"{PROGRAM} serve --http-port 9000", leave_out=["name"])
def serve(options: BuildOptions, address: Address, server: ServerOptions, tls: Tls, name: str = "") -> int:
    """Build if needed, then run and supervise a real tritonserver in the foreground."""
    from build_scripts.serving.serve import serve as run

    return run(replace(options, name=name or ENSEMBLE), address, server, tls, named=bool(name))


@command(f'{PROGRAM} classify --text "Midfielder scores twice"', leave_out=["http_port", "metrics_port"])
def classify(asked: ClassifyOptions, address: Address, tls: Tls) -> None:
    """Print class id, label and probability per text, tab-separated."""
    from build_scripts.serving.classify import print_answers

    print_answers(asked, address, tls)


@command(f"{PROGRAM} release --model ./my-checkpoint", leave_out=["repository"])
def release(
    options: BuildOptions, evaluate: Path | None = None, worse_by: float = WORSE_BY, http_port: int = HTTP_PORT
) -> None:
    """Build a release into the running server's repository and put it live, without a failed request.

    With EVALUATE it is refused if it is less accurate on these labelled texts than the live one.
    """
    from build_scripts.serving.swap.release import release as put_live

    check = None
    if evaluate:  # only then: needs scikit-learn
        from build_scripts.quality.gate import release_check

        check = release_check(evaluate, worse_by, options.name, options.columns)
    put_live(options, http_port, check)


@command(f"{PROGRAM} rollback --http-port 9000")
def rollback(name: str = ENSEMBLE, http_port: int = HTTP_PORT) -> None:
    """Put the release that was live before back, without a failed request."""
    from build_scripts.serving.swap.release import rollback as put_back

    put_back(http_port, check_name(name))


@command(f"{PROGRAM} status --http-port 9000")
def status(http_port: int = HTTP_PORT) -> None:
    """Print each classifier's live release, and the releases to roll back to."""
    from build_scripts.serving.swap.status import status as describe

    print(describe(http_port))


COMMANDS = (serve, classify, health, doctor, release, rollback, status)
