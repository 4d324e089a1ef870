"""What tritonserver sees of the environment: named variables only, so that no other tool's setting or secret gets in.

A variable of another program can change what tritonserver opens (AIP_MODE: an endpoint that needs no key) or reach
everything that runs inside it (tokens of a hub, of a cloud).
"""

from __future__ import annotations

import os

from build_scripts.core.machine import cores

MOST_THREADS = 16
# Exactly these, and those that begin so.
NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES"),
}
PREFIXES = (
    *("LC_", "PYTHON", "TRITON", "OTEL_", "GRPC_"),
    # the devices
    *("CUDA_", "NVIDIA_", "NCCL_"),
    # the libraries that compute, and their memory
    *("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH", "PYTORCH_", "TOKENIZERS_", "RAYON_"),
    *("MALLOC_", "TCMALLOC_"),
)


def passed_on() -> dict[str, str]:
    """The part of this process's environment that tritonserver gets."""
    return {name: value for name, value in os.environ.items() if name in NAMES or name.startswith(PREFIXES)}


def threads(classifiers: int = 1) -> int:
    """How many each classifier of a server gets: one a core, but all together not more than two a core.

    Eight that were asked at once on 2 cores, with a thread a core each, answered 0.65 times the requests/s of eight
    with one thread each; two 0.92 times, but then one that is asked alone is slower.
    No more than MOST_THREADS: a short text's products would be split into pieces that are done before their threads
    have met. A larger machine is filled by several instances, which `make tune` finds. (Reckoned, not measured.)
    """
    return max(1, min(cores(), MOST_THREADS, 2 * cores() // classifiers))


def tuning(classifiers: int = 1) -> dict[str, str]:
    """Environment that was chosen by measurement; what the user has set wins. classifiers: how many are served.

    OMP_WAIT_POLICY: with more OpenMP threads than cores, as with several classifiers, libgomp spins 100 times only, but
    with this policy up to 1000 times, if GOMP_SPINCOUNT allows it (see build_scripts/__init__.py).
    TOKENIZERS_PARALLELISM: a text takes 15 us, less than handing it to another thread would cost.
    OMP_NUM_THREADS: torch, in both backends, takes as many threads, and would count the host's cores in a container.
    """
    chosen = {
        "OMP_NUM_THREADS": str(threads(classifiers)),
        "OMP_WAIT_POLICY": "active",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {name: value for name, value in chosen.items() if name not in os.environ}
