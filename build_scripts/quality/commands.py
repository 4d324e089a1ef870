"""Commands about quality: evaluate, diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from build_scripts.core.command_line import PROGRAM, command
from build_scripts.core.errors import ServingError
from build_scripts.core.names import check_name
from build_scripts.core.options import Address, BuildOptions
from build_scripts.core.paths import BUILD
from build_scripts.serving.start.arguments import Tls

if TYPE_CHECKING:
    from build_scripts.quality.answers import Source

EVALUATION, DIFFERENCE = BUILD / "evaluate", BUILD / "diff"


@command(f"{PROGRAM} evaluate --file labelled.tsv", leave_out=["http_port", "metrics_port"])
def evaluate(options: BuildOptions, address: Address, tls: Tls, file: str = "", release_id: str = "") -> None:
    """Measure a classifier on labelled texts: the running server's, or that of MODEL or RELEASE in this process."""
    from build_scripts.quality.evaluate import evaluate as run

    source = candidate(options, release_id) if options.model or release_id else served(options.name, address, tls)
    done = run(source, path_of(file), EVALUATION, options.columns)
    figures = ", ".join(f"{name} {figure}" for name, figure in done.quality.headline.items())
    print(f"{source.described}, {done.quality.texts} texts: {figures}")
    if done.collected.bad:
        print(f"{len(done.collected.bad)} bad rows were left out, the first in line {done.collected.bad[0].line}")
    print(f"written: {done.report}")


@command(f"{PROGRAM} diff --model ./retrained --file texts.txt", leave_out=["http_port", "metrics_port"])
def diff(options: BuildOptions, address: Address, tls: Tls, file: str = "", release_id: str = "") -> None:
    """Compare the running server's answers with those of MODEL or RELEASE, which is asked in this process."""
    from build_scripts.quality.difference import compare, write_difference

    if not (options.model or release_id):
        raise ServingError(
            "MODEL=… is missing; expected the checkpoint to compare with, or RELEASE=… from `make status`"
        )
    live, other = served(options.name, address, tls), candidate(options, release_id)
    found = compare(live, other, path_of(file), options.columns)
    report = write_difference(DIFFERENCE, found, live.described, other.described)
    print(f"{found.changed} of {found.texts} class ids differ\nwritten: {report}")


def path_of(file: str) -> Path:
    if not file:
        raise ServingError("FILE=… is missing; expected labelled texts: TSV, CSV with a header, or JSON lines")
    return Path(file)


def served(name: str, address: Address, tls: Tls) -> Source:
    from build_scripts.quality.answers import Served

    return Served(address.grpc_url, check_name(name), tls)


def candidate(options: BuildOptions, release_id: str) -> Source:
    """A release on the disk, built now if it is missing; the live one stays live."""
    from build_scripts.quality.answers import InProcess
    from build_scripts.releases import store
    from build_scripts.releases.pipeline import build_release

    if not release_id:
        return InProcess(build_release(options).release)
    known = {path.name: path for path in store.releases(options.repository, options.name)}
    if release_id not in known:
        raise ServingError(
            f"RELEASE={release_id}: there is none; {options.repository} holds {', '.join(known) or 'none'}"
        )
    return InProcess(known[release_id])


COMMANDS = (evaluate, diff)
