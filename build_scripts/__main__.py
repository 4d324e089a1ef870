"""The command line: `python -m build_scripts --help`. Every command is thin; the stages do the work.

Each option can also be given as an environment variable with the prefix TRITON_TC_: that is how the Makefile passes
`make serve HTTP_PORT=9000` on. The bare names are not looked for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from build_scripts.core.errors import ServingError
from build_scripts.core.names import ENSEMBLE, check_name
from build_scripts.core.options import PRECISIONS, VARIABLE_PREFIX, Address, BuildOptions
from build_scripts.core.paths import PACKAGE, SOURCE_REPOSITORY
from build_scripts.core.text_files import read_lines

if TYPE_CHECKING:
    from build_scripts.serving.client import Text

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


def variable(name: str, help: str, **more: Any) -> Any:
    """An option that is a variable of the Makefile, too; the list of VARIABLES there has the same names."""
    return typer.Option(envvar=VARIABLE_PREFIX + name, help=help, **more)


Model = Annotated[str, variable("MODEL", "Checkpoint directory or hub id; default: the embedded one.")]
Name = Annotated[str, variable("NAME", "Which of the repository's classifiers.")]
MaxLength = Annotated[
    int | None, variable("MAX_LENGTH", "Tokens a text; default: what the checkpoint takes, at most 512.")
]
Precision = Annotated[str, variable("PRECISION", f"One of {', '.join(PRECISIONS)}.")]
Calibration = Annotated[Path | None, variable("CALIBRATION", "Texts for the precision gate, a line each.")]
Repository = Annotated[Path, variable("MODEL_REPOSITORY", "The model repository.")]
Host = Annotated[str, variable("HOST", "Address to listen on.")]
HttpPort = Annotated[int, variable("HTTP_PORT", "HTTP port.")]
GrpcPort = Annotated[int, variable("GRPC_PORT", "gRPC port.")]
MetricsPort = Annotated[int, variable("METRICS_PORT", "Metrics port.")]
Drain = Annotated[
    float, variable("DRAIN", "Seconds before a stop in which health says no already, and requests are answered.", min=0)
]
Cache = Annotated[str, variable("CACHE", "Memory for answers to texts that come again, such as 64M; default: none.")]
Trace = Annotated[str, variable("TRACE", "OTLP receiver for Triton's traces, such as http://127.0.0.1:4318.")]
Certificate = Annotated[Path | None, variable("TLS_CERT", "This side's certificate for gRPC, a PEM file.")]
Key = Annotated[Path | None, variable("TLS_KEY", "Its key.")]
Authority = Annotated[
    Path | None, variable("TLS_CA", "Whose certificates are trusted: the clients' (serve), the server's (classify).")
]
Live = Annotated[bool, variable("LIVE", "Exit 0 as long as the server lives: for a liveness probe.")]
Seconds = Annotated[float, variable("SECONDS_PER_LEVEL", "Per level and service, or variant.", min=0.1)]

DEFAULT = Address()


def build_options(
    model: str, max_length: int | None, precision: str, calibration: Path | None, repository: Path, name: str = ENSEMBLE
) -> BuildOptions:
    if precision not in PRECISIONS:
        raise ServingError(f"PRECISION={precision}; expected one of {', '.join(PRECISIONS)}")
    if calibration is not None and not calibration.is_file():
        raise ServingError(f"CALIBRATION={calibration}: no such file; expected texts, one a line")
    return BuildOptions(model, max_length, precision, calibration, repository.absolute(), check_name(name))


@app.command(epilog="Example: python -m build_scripts repo --model ./my-checkpoint --precision fp32")
def repo(
    model: Model = "",
    name: Name = ENSEMBLE,
    max_length: MaxLength = None,
    precision: Precision = "auto",
    calibration: Calibration = None,
    model_repository: Repository = SOURCE_REPOSITORY,
) -> None:
    """Build the model repository: checkpoint, TorchScript, verified, assembled."""
    from build_scripts.releases.pipeline import build
    from build_scripts.releases.summary import print_build

    print_build(build(build_options(model, max_length, precision, calibration, model_repository, name)))


@app.command(epilog="Example: python -m build_scripts serve --http-port 9000")
def serve(
    model: Model = "",
    name: Name = "",
    max_length: MaxLength = None,
    precision: Precision = "auto",
    calibration: Calibration = None,
    model_repository: Repository = SOURCE_REPOSITORY,
    host: Host = DEFAULT.host,
    http_port: HttpPort = DEFAULT.http_port,
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    metrics_port: MetricsPort = DEFAULT.metrics_port,
    drain: Drain = 0.0,
    trace: Trace = "",
    cache: Cache = "",
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_ca: Authority = None,
) -> None:
    """Build if needed, then run and supervise a real tritonserver in the foreground."""
    from build_scripts.releases.pipeline import build, update_sources
    from build_scripts.releases.store import is_package, locked, names
    from build_scripts.serving.keep.run_directory import held
    from build_scripts.serving.keep.supervisor import serve as run
    from build_scripts.serving.start.caching import cache_arguments
    from build_scripts.serving.start.installation import find_installation
    from build_scripts.serving.start.ports import check_ports, resolved
    from build_scripts.serving.start.tls import Tls, tls_arguments
    from build_scripts.serving.start.tracing import trace_arguments

    address = resolved(Address(host, http_port, grpc_port, metrics_port))
    options = build_options(model, max_length, precision, calibration, model_repository, name or ENSEMBLE)
    installation = find_installation()
    installation.arguments.extend(trace_arguments(trace))
    installation.arguments.extend(cache_arguments(cache))
    if cache and tls_cert:
        raise ServingError("CACHE is switched on over gRPC without TLS; leave out CACHE, or TLS_CERT")
    installation.arguments.extend(tls_arguments(Tls(tls_cert, tls_key, tls_ca), address.host))
    with held(http_port) as directory:
        check_ports(address)
        if is_package(options.repository):
            if model or name:
                asked = f"MODEL={model}" if model else f"NAME={name}"
                raise ServingError(f"{asked}: {options.repository} is a package and serves what it was made from")
        elif not (model or name) and ENSEMBLE not in (names(options.repository) or [ENSEMBLE]):
            # It was never built, and is not asked for, in a repository that has others.
            with locked(options.repository):
                update_sources(options.repository)
        else:
            from build_scripts.releases.summary import print_build

            print_build(build(options))
        start_answer_cache = None
        if cache:  # only then: an image that serves a package has no tritonclient, which this imports
            from build_scripts.serving.swap.answer_cache import load_all_cached

            start_answer_cache = load_all_cached
        raise typer.Exit(run(installation, options.repository, address, directory, drain, start_answer_cache))


@app.command(epilog="Example: python -m build_scripts package --output build/package")
def package(
    model_repository: Repository = SOURCE_REPOSITORY,
    output: Annotated[Path, variable("OUTPUT", "Where to write; an earlier package there is replaced.")] = PACKAGE,
) -> None:
    """Pack the live releases for a bucket, a volume or an image: a directory, a tar and an OCI image layout."""
    from build_scripts.releases.package import package as pack

    packed = pack(model_repository.absolute(), output.absolute())
    print(
        f"release {' '.join(packed.releases.values())}: {packed.files} files, {packed.size / 1e6:.1f} MB\n"
        f"  directory  {packed.directory}/model_repository\n"
        f"  tar        {packed.directory}/model_repository.tar\n"
        f"  image      {packed.directory}/oci ({packed.digest})"
    )


@app.command(epilog='Example: python -m build_scripts classify --text "Midfielder scores twice"')
def classify(
    text: Annotated[str | None, variable("TEXT", "One text.")] = None,
    pair: Annotated[str | None, variable("PAIR", "The second text, for a classifier of pairs.")] = None,
    file: Annotated[
        str | None, variable("FILE", "One text a line, a tab before the second of a pair; - for standard input.")
    ] = None,
    name: Name = ENSEMBLE,
    host: Host = DEFAULT.host,
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    tls_ca: Authority = None,
) -> None:
    """Print class id, label and probability per text, tab-separated."""
    from tqdm import tqdm

    from build_scripts.serving.client import classify as answers
    from build_scripts.serving.start.tls import Tls

    texts: Iterable[Text]
    if text is not None and file is None:
        texts = [text if pair is None else (text, pair)]
    elif file is not None and text is None and pair is None:
        texts = map(pair_or_text, read_lines("FILE", file))
    else:
        raise ServingError('expected either TEXT="…", with or without PAIR="…", or FILE=path (- for standard input)')
    url = Address(host, grpc_port=grpc_port).grpc_url
    progress = tqdm(
        answers(texts, url, tls=Tls(tls_cert, tls_key, tls_ca), name=check_name(name)),
        unit="text",
        disable=True if text is not None else None,
        leave=False,
    )
    for answer in progress:
        print(f"{answer.class_id}\t{answer.label}\t{answer.probability:.4f}")


def pair_or_text(line: str) -> Text:
    """A tab separates the two texts of a pair."""
    first, tab, second = line.partition("\t")
    return (first, second) if tab else line


@app.command(epilog="Example: python -m build_scripts health --http-port 9000")
def health(
    host: Host = DEFAULT.host, http_port: HttpPort = DEFAULT.http_port, live: Live = False, name: Name = ""
) -> None:
    """Exit 0 only if a real inference answers within 2 seconds; 3 if the server lives but is overloaded or draining.

    Asks every classifier, or the one that NAME names.
    """
    from build_scripts.serving.keep.health import report

    code, line = report(Address(host, http_port).http_url, 2.0, live=live, names=[check_name(name)] if name else [])
    print(line)
    raise typer.Exit(code)


@app.command(epilog="Example: python -m build_scripts doctor --model-repository build/package/model_repository")
def doctor(
    model_repository: Repository = SOURCE_REPOSITORY,
    host: Host = DEFAULT.host,
    http_port: HttpPort = DEFAULT.http_port,
    grpc_port: GrpcPort = DEFAULT.grpc_port,
    metrics_port: MetricsPort = DEFAULT.metrics_port,
) -> None:
    """Tell whether the repository can be served on this machine: one line a check, ok or what to do."""
    from build_scripts.serving.doctor import report

    raise typer.Exit(report(model_repository.absolute(), Address(host, http_port, grpc_port, metrics_port)))


@app.command(epilog="Example: python -m build_scripts perf --seconds 3")
def perf(
    model: Model = "",
    max_length: MaxLength = None,
    precision: Precision = "auto",
    calibration: Calibration = None,
    model_repository: Repository = SOURCE_REPOSITORY,
    host: Host = DEFAULT.host,
    http_port: HttpPort = DEFAULT.http_port,
    seconds: Seconds = 12.0,
) -> None:
    """Sweep the running ensemble, or one started for it, with perf_analyzer; writes build/perf."""
    from build_scripts.benchmarks.perf import perf as sweep

    options = build_options(model, max_length, precision, calibration, model_repository)
    print(f"\nwritten: {sweep(options, Address(host, http_port), seconds)}")


@app.command(epilog="Example: python -m build_scripts release --model ./my-checkpoint")
def release(
    model: Model = "",
    name: Name = ENSEMBLE,
    max_length: MaxLength = None,
    precision: Precision = "auto",
    calibration: Calibration = None,
    http_port: HttpPort = DEFAULT.http_port,
) -> None:
    """Build a release into the running server's repository and put it live, without a failed request."""
    from build_scripts.serving.swap.release import release as put_live

    put_live(build_options(model, max_length, precision, calibration, SOURCE_REPOSITORY, name), http_port)


@app.command(epilog="Example: python -m build_scripts rollback --http-port 9000")
def rollback(name: Name = ENSEMBLE, http_port: HttpPort = DEFAULT.http_port) -> None:
    """Put the release that was live before back, without a failed request."""
    from build_scripts.serving.swap.release import rollback as put_back

    put_back(http_port, check_name(name))


@app.command(epilog="Example: python -m build_scripts status --http-port 9000")
def status(http_port: HttpPort = DEFAULT.http_port) -> None:
    """Print what the running server answers with, classifier by classifier, and what could be rolled back to."""
    from build_scripts.serving.swap.release import status as describe

    print(describe(http_port))


@app.command(epilog="Example: python -m build_scripts compare --model ./my-checkpoint")
def compare(model: Model = "", max_length: MaxLength = None, seconds: Seconds = 0.8) -> None:
    """Compare the ensemble with the services it replaces, in one run; writes build/compare."""
    from build_scripts.benchmarks.compare import compare as measure

    print(f"\nwritten: {measure(model, max_length, seconds)}")


@app.command(epilog="Example: python -m build_scripts tune --aim throughput --p99-ms 50 --file my-texts.txt")
def tune(
    aim: Annotated[str, variable("AIM", "latency (of one client) or throughput (of many).")] = "latency",
    p99_ms: Annotated[float | None, variable("P99_MS", "The p99 with many clients may not be longer.", min=0.1)] = None,
    file: Annotated[str | None, variable("FILE", "One text a line; default: the project's own texts.")] = None,
    model_repository: Repository = SOURCE_REPOSITORY,
    seconds: Seconds = 2.0,
) -> None:
    """Find the classifier instances and threads that serve best here; writes classifier/config.pbtxt."""
    from build_scripts.benchmarks.corpus import corpus
    from build_scripts.benchmarks.tune import tune as find

    texts = corpus() if file is None else [line for line in read_lines("FILE", file) if line.strip()]
    if not texts:
        raise ServingError(f"FILE={file} holds no text; expected one a line")
    print(f"\nwritten: {find(model_repository.absolute(), texts, aim, p99_ms, seconds)}")


@app.command(epilog="Example: python -m build_scripts bench --model ./my-checkpoint")
def bench(model: Model = "", max_length: MaxLength = None, seconds: Seconds = 3.0) -> None:
    """Time the classifier file alone, against the machine's peak and other runtimes; writes build/bench."""
    from build_scripts.benchmarks.bench import bench as measure

    print(f"\nwritten: {measure(model, max_length, seconds)}")


def main() -> None:
    try:
        app()
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
