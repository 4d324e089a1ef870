"""Start a tritonserver, and end it with everything that it started. Watching over it is `supervisor`'s job."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.names import ENSEMBLE
from build_scripts.core.options import Address
from build_scripts.serving.start.arguments import plain
from build_scripts.serving.start.environment import passed_on, tuning
from build_scripts.serving.start.installation import Installation

PR_SET_PDEATHSIG = 1
# Triton waits this long for requests in flight when it is asked to stop.
EXIT_TIMEOUT_S = 10
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
    installation: Installation,
    repositories: list[Path],
    address: Address,
    control_key: str,
    log: Path,
    names: Sequence[str] = (ENSEMBLE,),
) -> TritonProcess:
    """Start tritonserver on the live releases of these classifiers. It ends when its parent does, however that ends.

    control_key: who sends it in the header CONTROL_HEADER may load and unload models. log: the server's output goes
    to its end.
    """
    prefix = f"text_classifier_{os.getpid()}_"
    command = [
        str(installation.binary),
        *(f"--model-repository={plain(repository)}" for repository in repositories),
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in names),
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
                **tuning(len(names)),
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
