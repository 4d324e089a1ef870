"""Find a tritonserver that this machine can run, and prepare what it needs. Starting it is `tritonserver`'s job.

A `tritonserver` on PATH (as in NVIDIA's container) is used with its own backends. Otherwise the
one inside the nvidia-pytriton wheel runs: the same program, with the `python` backend, and with our Python-based
`pytorch` backend instead of the C++ one, which the wheel lacks.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from build_scripts.core.errors import ServingError
from build_scripts.core.paths import BUILD
from build_scripts.serving.start.arguments import plain

PYTORCH_BACKEND = Path(__file__).resolve().parents[1] / "pytorch_backend"
# The one inside the nvidia-pytriton wheel.
EMBEDDED_VERSION = "2.51.0"
# Needed by the embedded server's libraries.
GLIBC = (2, 35)
# Allocations of this size return to the OS when freed. glibc raises the threshold to 32 MiB by default and keeps memory
# of large requests: 500 to 670 MiB after 200 clients with valid requests of 1 MiB, 736 MiB at the peak; with this value
# 14 and 416 MiB. The classifier's process sets its own value. Not for a server that computes in its own process.
MALLOC_VARIABLE, MALLOC_BYTES = "MALLOC_MMAP_THRESHOLD_", 256 << 10


@dataclass(frozen=True)
class Installation:
    """A tritonserver that can run here.

    arguments: of this installation. embedded: the pytorch backend is this project's.
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
        description=f"embedded tritonserver {EMBEDDED_VERSION}, with the Python-based pytorch backend of this project",
        arguments=[
            f"--backend-directory={plain(prepare_backends(wheel))}",
            f"--cache-directory={plain(wheel / 'pytriton' / 'tritonserver' / 'caches')}",
        ],
        environment={
            "LD_LIBRARY_PATH": os.pathsep.join([plain(wheel / "nvidia_pytriton.libs"), plain(libpython_directory())]),
            # The stub process finds numpy and torch through the virtual environment that is active here.
            "PATH": os.pathsep.join([f"{plain(Path(sys.prefix))}/bin", os.environ.get("PATH", "")]),
            "VIRTUAL_ENV": plain(Path(sys.prefix)),
            # As NVIDIA's container has it; for text_classifier_info.
            "TRITON_SERVER_VERSION": EMBEDDED_VERSION,
            MALLOC_VARIABLE: os.environ.get(MALLOC_VARIABLE, str(MALLOC_BYTES)),
        },
        embedded=True,
    )


def check_platform() -> None:
    """Raise ServingError where the embedded server cannot run."""
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
    """Directory of this interpreter's shared libpython; the python backend's stub is linked against it."""
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
        **{backends / "pytorch" / file.name: file.read_bytes() for file in PYTORCH_BACKEND.glob("*.py")},
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
            f"{backends} cannot be written ({error.strerror}); the embedded server's backends are copied there: "
            f"make {BUILD} a directory that this user may write to, with 10 MiB free"
        ) from error
    return backends


def perf_analyzer_environment(wheel: Path) -> dict[str, str]:
    """perf_analyzer needs two libraries that the wheel carries under longer names."""
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
