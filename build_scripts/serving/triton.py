"""Find a tritonserver, prepare what it needs, start and stop it. Watching over it is `supervisor`'s job.

A `tritonserver` on PATH (as in NVIDIA's container) is used with its own backends. Otherwise the one inside the
nvidia-pytriton wheel is: the same program, with the `python` backend, and with our Python-based `pytorch` backend in
the place of the C++ one that the wheel leaves out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from build_scripts.serving.environment import passed_on, tuning
from build_scripts.serving.plain_paths import plain
from build_scripts.settings import BUILD, ENSEMBLE, Address, ServingError

HERE = Path(__file__).resolve().parent
PR_SET_PDEATHSIG = 1
# Triton waits this long for requests in flight when it is asked to stop.
EXIT_TIMEOUT_S = 10
# What the embedded server's libraries ask for.
GLIBC = (2, 35)
# Loading a model takes seconds; a server or a model that needs longer than this is taken for broken.
LOAD_LIMIT_S = 300.0
# Reserved, not used, by each thread of the server: enough for request bodies of several hundred MiB.
STACK_BYTES = 1 << 30
# Where the system allows so many; the usual 1,024 are fewer than the clients that may wait in open connections.
OPEN_FILES = 1 << 16
# Of 1,000, which would mean: always first.
OOM_SCORE = "500"
# What only the supervisor may call; the key is made anew for each server.
RESTRICTED = "model-repository,shared-memory,trace,logging"
CONTROL_HEADER = "triton-control"
# Tells the tokenizer where it can read how many requests wait.
METRICS_VARIABLE = "TRITON_METRICS_ADDRESS"


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can be run.

    arguments: those that depend on the installation. embedded: whether the pytorch backend is this project's.
    """

    binary: Path
    description: str
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    embedded: bool = False


def find_installation() -> Installation:
    """The tritonserver on PATH, else the embedded one. Raises ServingError if this machine can run neither."""
    on_path = shutil.which("tritonserver")
    if on_path:
        return Installation(Path(on_path), f"{on_path}, with its own pytorch backend")
    check_platform()
    wheel = embedded_wheel()
    return Installation(
        binary=wheel / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        description="embedded tritonserver 2.51.0, with the Python-based pytorch backend of this project",
        arguments=[
            f"--backend-directory={plain(prepare_backends(wheel))}",
            f"--cache-directory={plain(wheel / 'pytriton' / 'tritonserver' / 'caches')}",
        ],
        environment={
            "LD_LIBRARY_PATH": os.pathsep.join([plain(wheel / "nvidia_pytriton.libs"), plain(libpython_directory())]),
            # The stub process finds numpy and torch through the virtual environment that is active here.
            "PATH": os.pathsep.join([f"{plain(Path(sys.prefix))}/bin", os.environ.get("PATH", "")]),
            "VIRTUAL_ENV": plain(Path(sys.prefix)),
        },
        embedded=True,
    )


def check_platform() -> None:
    """Raises ServingError where the embedded server's wheel has nothing that runs."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise ServingError(
            f"the embedded tritonserver runs on Linux x86-64 and aarch64, this is {sys.platform} {platform.machine()}; "
            "put a tritonserver on PATH, or use NVIDIA's container"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        raise ServingError(
            f"the embedded tritonserver needs glibc {GLIBC[0]}.{GLIBC[1]}, this is {name or 'another'} {version}; "
            "Debian 12, Ubuntu 22.04 and Fedora 35 have it, Debian 11, Ubuntu 20.04, RHEL 9 and Alpine do not: put a "
            "tritonserver on PATH, or use NVIDIA's container"
        )


def embedded_wheel() -> Path:
    """The site-packages directory that holds the nvidia-pytriton wheel."""
    try:
        return Path(str(distribution("nvidia-pytriton").locate_file("")))  # importing it would need all it depends on
    except PackageNotFoundError as error:
        raise ServingError(
            "no tritonserver on PATH, and the wheel nvidia-pytriton, which carries one, is not installed; "
            "run `make install`"
        ) from error


def libpython_directory() -> Path:
    """Where the shared libpython of this interpreter lies; the python backend's stub is linked against it."""
    name = sysconfig.get_config_var("INSTSONAME") or ""
    candidates = [Path(sysconfig.get_config_var("LIBDIR") or ""), Path(sys.base_prefix) / "lib"]
    for directory in candidates:
        if ".so" in name and (directory / name).exists():
            return directory
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ServingError(
        f"{sys.executable} has no shared libpython{version} (looked for {name or 'libpython.so'} in {candidates[0]}), "
        f"which Triton's python backend needs; install libpython{version}, or choose another interpreter with PYTHON=…"
    )


def prepare_backends(wheel: Path) -> Path:
    """A backend directory: the wheel's python backend with the right stub beside it, and our pytorch backend.

    Copies, because Triton refuses a backend library that a link leads out of its directory.
    """
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    source = wheel / "pytriton" / "tritonserver"
    stub = source / "python_backend_stubs" / python_version / "triton_python_backend_stub"
    if not stub.exists():
        known = ", ".join(sorted(path.name for path in stub.parent.parent.iterdir()))
        raise ServingError(
            f"the embedded tritonserver has no stub for Python {python_version}, only for {known}; set PYTHON=…"
        )
    backends = BUILD / f"backends-{python_version}"
    python, utils = source / "backends" / "python", "triton_python_backend_utils.py"
    contents = {
        backends / "python" / "libtriton_python.so": (python / "libtriton_python.so").read_bytes(),
        backends / "python" / "triton_python_backend_stub": stub.read_bytes(),
        backends / "python" / utils: (python / utils).read_bytes(),
        **{backends / "pytorch" / file.name: file.read_bytes() for file in (HERE / "pytorch_backend").glob("*.py")},
    }
    try:
        for file, content in contents.items():
            if not (file.exists() and file.read_bytes() == content):
                file.parent.mkdir(parents=True, exist_ok=True)
                new = file.with_name(f".{file.name}.{os.getpid()}")
                new.write_bytes(content)
                new.chmod(0o755)
                os.replace(new, file)
    except OSError as error:
        raise ServingError(
            f"{backends} cannot be written ({error.strerror}); the embedded server's backends are put together there: "
            f"make {BUILD} a directory that this user may write to, and that has some space"
        ) from error
    return backends


def perf_analyzer_environment(wheel: Path) -> dict[str, str]:
    """perf_analyzer wants two libraries that the wheel carries under decorated names."""
    libraries = BUILD / "perf_analyzer-libraries"
    for name, pattern in {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}.items():
        link_to(libraries / name, next((wheel / "nvidia_pytriton.libs").glob(pattern)))
    return {"LD_LIBRARY_PATH": os.pathsep.join([str(libraries), str(wheel / "nvidia_pytriton.libs")])}


def link_to(link: Path, target: Path) -> None:
    """Make or mend a symbolic link; two processes may do so at once."""
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, link)


@dataclass
class TritonProcess:
    """A running tritonserver with everything it started. `launch` makes one, `stopping.stop` ends it well."""

    process: subprocess.Popen
    shared_memory_prefix: str

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        """End the server and its stub processes at once, and remove their shared memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and group_exists(self.process.pid):
            time.sleep(0.02)
        for segment in self.shared_memory():
            segment.unlink(missing_ok=True)

    def shared_memory(self) -> list[Path]:
        """The segments through which tritonserver and its stubs exchange texts."""
        return list(Path("/dev/shm").glob(f"{self.shared_memory_prefix}*"))

    def hide_shared_memory(self) -> None:
        """From other users of the machine. Triton makes each segment readable for all, whatever the umask."""
        for segment in self.shared_memory():
            with contextlib.suppress(FileNotFoundError):
                segment.chmod(0o600)


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def launch(
    installation: Installation, repositories: list[Path], address: Address, control_key: str, log: Path
) -> TritonProcess:
    """Start tritonserver on the live release. It ends when its parent does, however that ends.

    control_key: who sends it in the header CONTROL_HEADER may load and unload models. log: the server's output goes
    to its end.
    """
    prefix = f"text_classifier_{os.getpid()}_"
    command = [
        str(installation.binary),
        *(f"--model-repository={plain(repository)}" for repository in repositories),
        "--model-control-mode=explicit",
        f"--load-model={ENSEMBLE}",
        # Otherwise /v2/health/ready says no while a release loads beside the live one.
        "--strict-readiness=false",
        # Our configs are complete. Asking the models too would start each process twice: 3.8 s a classifier, not 2.0.
        "--disable-auto-complete-config",
        f"--http-address={address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics_port}",
        # Quantiles beside the sums: what an alert and a dashboard are about.
        "--metrics-config=summary_latencies=true",
        f"--http-restricted-api={RESTRICTED}:{CONTROL_HEADER}={control_key}",
        f"--grpc-restricted-protocol={RESTRICTED}:{CONTROL_HEADER}={control_key}",
        # With AIP_MODE in the environment, an endpoint that restricts nothing; never meant here, so never there.
        "--allow-vertex-ai=false",
        "--allow-sagemaker=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        *installation.arguments,
    ]
    log.touch(mode=0o600)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **passed_on(),
                **tuning(),
                **installation.environment,
                METRICS_VARIABLE: address.metrics_address,
            },
            umask=0o077,
            # A group of its own: Ctrl-C reaches the supervisor alone, and the whole group can be killed.
            start_new_session=True,
            preexec_fn=_before_exec,
        )
    return TritonProcess(process, prefix)


def _before_exec() -> None:
    """Runs in the child.

    The server is to end with its parent: by SIGTERM, so that it stops its stub processes and frees shared memory. And
    its HTTP threads need room: Triton 2.51 recurses over a request's body, and 4 MiB overrun the usual stack of 8 MiB.
    And each connection is an open file. When memory runs out, the kernel is to end the server, not its supervisor.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    for kind, wanted in ((resource.RLIMIT_STACK, STACK_BYTES), (resource.RLIMIT_NOFILE, OPEN_FILES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
