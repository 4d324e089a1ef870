"""Containers as a cluster runs them, without an engine: buildah builds, runc runs, network namespaces connect.

Every container gets what a strict pod gets: a user that is not root, a read-only root, no capabilities, no new
privileges, 64 MiB of /dev/shm, a memory limit, a separate network namespace. Nothing reaches the host's network: a
bridge in one of the namespaces joins them, and clients run in that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.waiting import HANG_S

# For documentation, says RFC 5737: no machine has one of these.
NETWORK = "192.0.2"
MIB = 1 << 20


def run(*command: str | Path, check: bool = True, **options) -> subprocess.CompletedProcess:
    """A finished command; a failed one fails the test with its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, (
        f"{command}: {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )
    return done


@dataclass
class Buildah:
    """A separate image store in one directory."""

    directory: Path

    def __call__(self, *arguments: str | Path, **options) -> str:
        store = ["--root", self.directory / "root", "--runroot", self.directory / "run"]
        return run("buildah", "--storage-driver", "vfs", *store, *arguments, **options).stdout.strip()


@dataclass
class Namespaces:
    """Network namespaces on one bridge, which lies in the first, "<name>-lb" with the address .1."""

    name: str
    hosts: dict[str, str] = field(default_factory=dict)

    @property
    def balancer(self) -> str:
        return f"{self.name}-lb"

    def enter(self, namespace: str) -> list[str]:
        """Prefix of a command that runs in the namespace."""
        return ["ip", "netns", "exec", namespace]

    def add(self, number: int) -> str:
        """The namespace with the address NETWORK.number, made if it is not there. Returns its name."""
        namespace = f"{self.name}-{number}"
        if namespace in self.hosts:
            return namespace
        self._make(namespace)
        ip = [*self.enter(self.balancer), "ip"]
        run(*ip, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run(*ip, "link", "set", f"v{number}", "master", "br0", "up")
        inside = [*self.enter(namespace), "ip"]
        run(*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        self.hosts[namespace] = f"{NETWORK}.{number}"
        return namespace

    def _make(self, namespace: str) -> None:
        run("ip", "netns", "add", namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")

    def start(self) -> None:
        self._make(self.balancer)
        ip = ["ip", "-n", self.balancer]
        run(*ip, "link", "add", "br0", "type", "bridge")
        run(*ip, "addr", "add", f"{NETWORK}.1/24", "dev", "br0")
        run(*ip, "link", "set", "br0", "up")

    def stop(self) -> None:
        for namespace in [*self.hosts, self.balancer]:
            run("ip", "netns", "del", namespace, check=False)


@contextlib.contextmanager
def namespaces(name: str = "tc") -> Iterator[Namespaces]:
    made = Namespaces(f"{name}{os.getpid()}")
    try:
        made.start()
        yield made
    finally:
        made.stop()


def specification(
    root: Path,
    image: dict,
    namespace: str,
    *,
    models: Path | None,
    cpus: float,
    memory_mib: int,
    command: Sequence[str] | None,
    models_at: str,
    system_calls: Sequence[str],
    own_processes_only: bool,
) -> dict:
    """The OCI runtime configuration of a strict pod. image: the "config" of the image; cpus: 0 for no quota.

    models: a package that is mounted at models_at. command: in the place of the image's. system_calls: the only ones
    allowed, if there are any. own_processes_only: hide the processes of other users in /proc.
    """
    hidden = ["nosuid", "nodev", "noexec", *(["hidepid=2"] if own_processes_only else [])]
    allowed = [{"names": list(system_calls), "action": "SCMP_ACT_ALLOW"}]
    seccomp = {"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": allowed}
    tmpfs = ["nosuid", "nodev", "mode=1777"]
    bind = {"destination": models_at, "type": "bind", "source": str(models), "options": ["bind", "ro"]}
    limits: dict = {"memory": {"limit": memory_mib * MIB}, "pids": {"limit": 512}}
    if cpus:
        limits["cpu"] = {"quota": int(cpus * 100_000), "period": 100_000}
    return {
        "ociVersion": "1.0.2",
        "hostname": namespace,
        "root": {"path": str(root), "readonly": True},
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": list(command or [*image["Entrypoint"], *image["Cmd"]]),
            "env": image["Env"],
            "cwd": image["WorkingDir"],
            "noNewPrivileges": True,
            "capabilities": {name: [] for name in ("bounding", "effective", "inheritable", "permitted", "ambient")},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": hidden},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*tmpfs, "noexec", "size=64m"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": [*tmpfs, "noexec"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
            *([bind] if models else []),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]
            + [{"type": "network", "path": f"/run/netns/{namespace}"}],
            "cgroupsPath": f"/{namespace}",
            "resources": limits,
            **({"seccomp": seccomp} if system_calls else {}),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    }


@dataclass
class Container:
    """A running container. process: of `runc run`, which ends with its exit code."""

    name: str
    address: str
    process: subprocess.Popen
    output: Path
    state: Path

    @property
    def http(self) -> str:
        return f"http://{self.address}:8000"

    def runc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return run("runc", "--root", self.state, *arguments, check=check)

    def inside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        """A command in the container, as `kubectl exec` and exec probes run it."""
        return self.runc("exec", self.name, *command, check=check)

    def inside_later(self, *command: str) -> subprocess.Popen:
        """The same, not waited for; its output can be read."""
        return subprocess.Popen(
            ["runc", "--root", str(self.state), "exec", self.name, *command], stdout=subprocess.PIPE, text=True
        )

    def signal(self, name: str) -> None:
        self.runc("kill", self.name, name)

    def wait(self, timeout_s: float = HANG_S) -> int:
        return self.process.wait(timeout_s)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def remove(self) -> None:
        self.runc("delete", "--force", self.name, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(HANG_S)


def start(
    image: dict,
    root: Path,
    network: Namespaces,
    number: int,
    work: Path,
    *,
    models: Path | None = None,
    cpus: float = 0,
    memory_mib: int = 1536,
    command: Sequence[str] | None = None,
    models_at: str = "/models",
    system_calls: Sequence[str] = (),
    own_processes_only: bool = False,
) -> Container:
    """A container of an image whose root lies in a directory, in the namespace `number`, not waited for."""
    namespace = network.add(number)
    bundle = work / namespace
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    config = specification(
        root,
        image,
        namespace,
        models=models,
        cpus=cpus,
        memory_mib=memory_mib,
        command=command,
        models_at=models_at,
        system_calls=system_calls,
        own_processes_only=own_processes_only,
    )
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    output = work / f"{namespace}.txt"
    state = work / "runc"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["runc", "--root", str(state), "run", "--bundle", str(bundle), namespace],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    return Container(namespace, network.hosts[namespace], process, output, state)
