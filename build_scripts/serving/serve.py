"""`make serve`: check the options, build what is missing, then run the supervisor."""

from __future__ import annotations

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address, BuildOptions
from build_scripts.releases.pipeline import build, update_sources
from build_scripts.releases.store import is_package, locked, names
from build_scripts.serving.keep import supervisor
from build_scripts.serving.keep.run_directory import held
from build_scripts.serving.start.arguments import ServerOptions, Tls, option_arguments
from build_scripts.serving.start.installation import find_installation
from build_scripts.serving.start.ports import check_ports, resolved


def serve(options: BuildOptions, address: Address, server: ServerOptions, tls: Tls, *, named: bool) -> int:
    """Serve until SIGTERM; returns the exit code. named: whether the user named the classifier."""
    address = resolved(address)
    installation = find_installation()
    installation.arguments.extend(option_arguments(server, tls, address))
    with held(address.http_port) as directory:
        check_ports(address)
        prepare(options, named)
        start_answer_cache = None
        if server.cache:  # only then: an image that serves a package has no tritonclient, which this imports
            from build_scripts.serving.swap.answer_cache import load_all_cached

            start_answer_cache = load_all_cached
        return supervisor.serve(installation, options.repository, address, directory, server.drain, start_answer_cache)


def prepare(options: BuildOptions, named: bool) -> None:
    """Build what the options ask for, unless the repository is a package or has other classifiers only."""
    if is_package(options.repository):
        if options.model or named:
            asked = f"MODEL={options.model}" if options.model else f"NAME={options.name}"
            raise ServingError(f"{asked}: {options.repository} is a package and serves what it was made from")
    elif not (options.model or named) and ENSEMBLE not in (names(options.repository) or [ENSEMBLE]):
        with locked(options.repository):
            update_sources(options.repository)
    else:
        from build_scripts.releases.summary import print_build

        print_build(build(options))
