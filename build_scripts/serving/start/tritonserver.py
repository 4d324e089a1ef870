"""Start a tritonserver, and end it with everything that it started. Watching it is the supervisor's job."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
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
from build_scripts.serving.start.limits import stack_bytes

PR_SET_PDEATHSIG = 1
# Grace period for requests in flight when it stops. A server that is quiet sooner ends sooner; on busy cores 64 long
# texts, or one of 8,192 tokens, take more than ten seconds.
EXIT_TIMEOUT_S = 60
# Loading a model takes seconds; past this deadline a server or a model counts as broken.
LOAD_LIMIT_S = 300.0
# Open files, where the hard limit allows it; the usual 1,024 are fewer than the connections of waiting clients.
OPEN_FILES = 1 << 16
# Of 1,000. When memory runs out, the kernel ends the server before the supervisor.
OOM_SCORE = "500"
# It takes 0.04 s; a loaded machine may take much longer.
HELP_LIMIT_S = 60
# Interfaces for the supervisor only; each server gets a new key.
RESTRICTED = "model-repository,shared-memory,trace,logging"
CONTROL_HEADER = "triton-control"
# The tokenizer reads the number of pending requests at this address.
METRICS_VARIABLE = "TRITON_METRICS_ADDRESS"
# Arguments that not every build of Triton knows; one that it does not know ends it.
OPTIONAL = (
    # AIP_MODE in the environment would open an endpoint without restrictions.
    "--allow-vertex-ai=false",
    "--allow-sagemaker=false",
    # gRPC ends a connection after two pings that come sooner than this; by default, than 5 minutes, and while the
    # client is idle, than 2 hours. Clients are commonly set to 10 s or more.
    "--grpc-keepalive-permit-without-calls=true",
    "--grpc-http2-min-recv-ping-interval-without-data=1000",
)


@dataclass
class TritonProcess:
    """A running tritonserver with everything it started. `launch` makes one, `shutdown.stop` ends it cleanly."""

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
    """Start tritonserver on the live releases of these classifiers. It ends when its parent does, even by SIGKILL.

    control_key: in the header CONTROL_HEADER it permits a client to load and unload models. log: file to which the
    server's output is appended.
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
        *known_arguments(installation),
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
            # A separate process group: Ctrl-C reaches the supervisor alone, and the whole group can be killed.
            start_new_session=True,
            preexec_fn=_before_exec,
        )
    return TritonProcess(process, prefix)


def known_arguments(installation: Installation) -> list[str]:
    """Those of OPTIONAL that this tritonserver knows; all, if it does not answer `--help`."""
    try:
        done = subprocess.run(
            [str(installation.binary), "--help"],
            env={**passed_on(), **installation.environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=HELP_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return [*OPTIONAL]
    known = set(re.findall(r"--[\w-]+", done.stdout + done.stderr))
    return [argument for argument in OPTIONAL if argument.partition("=")[0] in known or not known]


def _before_exec() -> None:
    """Set limits, in the child.

    The server gets SIGTERM when its parent ends, so that it stops its stub processes and frees shared memory. Its HTTP
    threads need stack: Triton 2.51 recurses over a request's body, and 4 MiB overrun the usual 8 MiB.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, encoding="ascii")
    for kind, wanted in ((resource.RLIMIT_STACK, stack_bytes()), (resource.RLIMIT_NOFILE, OPEN_FILES)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
