"""The environment of tritonserver: named variables only, so that no other tool's setting or secret gets in.

A variable of another program can change what tritonserver opens (AIP_MODE: an endpoint that needs no key), reach
everything that runs inside it (tokens of a hub, of a cloud), or break it (PYTHONWARNINGS=error, PYTORCH_JIT=0).
"""

from __future__ import annotations

import os

from build_scripts.core.machine import cores

MOST_THREADS = 16
NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES"),
    # Where Python finds its modules and how it writes text; others change what Python code means.
    *("PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "PYTHONHASHSEED"),
    *("PYTHONUTF8", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONFAULTHANDLER"),
    *("PYTORCH_ALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK", "PYTORCH_KERNEL_CACHE_PATH"),
}
PREFIXES = (
    *("LC_", "TRITON", "OTEL_", "GRPC_"),
    # devices
    *("CUDA_", "NVIDIA_", "NCCL_", "PYTORCH_CUDA_"),
    # numeric libraries, and memory
    *("OMP_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH", "TOKENIZERS_", "RAYON_"),
    *("MALLOC_", "TCMALLOC_"),
)


def passed_on() -> dict[str, str]:
    """The part of this process's environment that tritonserver gets."""
    return {name: value for name, value in os.environ.items() if name in NAMES or name.startswith(PREFIXES)}


def threads(classifiers: int = 1) -> int:
    """Threads per classifier of a server: one per core, and at most two per core for all classifiers together.

    Eight busy classifiers on 2 cores answered 0.65 times the requests/s with a thread per core each as with one thread
    each; two answered 0.92 times, but then a classifier that is asked alone is slower.
    At most MOST_THREADS: a short text has too little work for more. `make tune` fills a larger machine with several
    instances. (Estimated, not measured.)
    """
    return max(1, min(cores(), MOST_THREADS, 2 * cores() // classifiers))


def tuning(classifiers: int = 1) -> dict[str, str]:
    """Environment that was chosen by measurement; the user's settings win. classifiers: number that is served.

    OMP_WAIT_POLICY: with more OpenMP threads than cores, as with several classifiers, libgomp spins 100 times; with
    this policy up to 1000 times, within GOMP_SPINCOUNT (see build_scripts/__init__.py).
    TOKENIZERS_PARALLELISM: a text takes 15 us, less than handing it to another thread costs.
    OMP_NUM_THREADS: for torch in both backends, which would count the host's cores in a container.
    """
    chosen = {
        "OMP_NUM_THREADS": str(threads(classifiers)),
        "OMP_WAIT_POLICY": "active",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {name: value for name, value in chosen.items() if name not in os.environ}
