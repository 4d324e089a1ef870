"""`make serve`: check the options, build what is missing, then run the supervisor."""

from __future__ import annotations

from build_scripts.core.options import Address, BuildOptions
from build_scripts.releases.store import is_package, refuse_options_for_package
from build_scripts.serving.keep import supervisor
from build_scripts.serving.keep.output import outlive_output
from build_scripts.serving.keep.run_directory import held
from build_scripts.serving.start.arguments import ServerOptions, Tls, option_arguments
from build_scripts.serving.start.installation import find_installation
from build_scripts.serving.start.limits import check_limits
from build_scripts.serving.start.ports import check_ports, resolved


def serve(options: BuildOptions, address: Address, server: ServerOptions, tls: Tls, *, named: bool) -> int:
    """Serve until SIGTERM; returns the exit code. named: whether the user named the classifier."""
    outlive_output(as_json=server.log == "json")
    check_limits()
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
    """Build what the options ask for, unless the repository is a package or the live release stays."""
    if is_package(options.repository):
        refuse_options_for_package(options, named=named)
        return
    # Imported only now: an image that serves a package has nothing that builds.
    from build_scripts.releases.before_serving import build_or_keep
    from build_scripts.releases.summary import print_build

    if built := build_or_keep(options, named=named):
        print_build(built)
