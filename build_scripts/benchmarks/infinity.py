"""Infinity, a server for embeddings and classifiers from PyPI, as a service that `compare` measures.

It needs older versions of this project's packages, so it runs in a separate environment, made at the first use.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from build_scripts.benchmarks import subprocesses
from build_scripts.benchmarks.services import START_LIMIT_S, Service

# click, numpy, transformers: upper limits that 0.0.78 needs and does not declare.
PACKAGES = ("infinity-emb[server,torch]==0.0.78", "transformers==4.57.6", "click<8.2", "numpy<2")
NAME = "Infinity 0.0.78"
MODEL = "classifier"
# Without these it asks the hub about a local directory and sends usage statistics.
QUIET = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"}


def install(directory: Path) -> str | None:
    """Its Python. None if the installation fails; the reason then goes to standard error."""
    python, installed = directory / "bin" / "python", directory / "installed"
    if not installed.exists():
        print(f"installing {NAME} into {directory}, which takes a minute", file=sys.stderr, flush=True)
        # The same build (+cpu, +cu…) as ours; the default build is CUDA's, with gigabytes.
        torch = f"torch=={version('torch')}"
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", torch, *PACKAGES], check=True)
        except subprocess.CalledProcessError as error:
            print(f"{NAME} is left out; PIP_EXTRA_INDEX_URL may name an index with {torch}: {error}", file=sys.stderr)
            return None
        installed.touch()
    return str(python)


@contextlib.contextmanager
def infinity(python: str, checkpoint: Path, labels: Sequence[str], log: Path) -> Iterator[Service]:
    """The checkpoint behind `POST /classify`, in fp32 on the CPU, with Infinity's default batching."""
    (port,) = subprocesses.free_ports(1)
    arguments = ["v2", "--model-id", str(checkpoint), "--served-model-name", MODEL, "--engine", "torch"]
    arguments += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    # Its fast path for BERT needs a package that supports no current torch.
    arguments += ["--no-bettertransformer"]
    with subprocesses.running("infinity_emb.cli", arguments, log, python, QUIET) as process:
        subprocesses.wait_until(lambda: subprocesses.listens(port), process.poll, log, START_LIMIT_S)
        yield Service(
            NAME,
            port,
            process.pid,
            "/classify",
            body=lambda text: {"model": MODEL, "input": [text]},
            body_of_many=lambda texts: {"model": MODEL, "input": texts},
            class_id=lambda answer: labels.index(answer["data"][0][0]["label"]),
            probabilities=lambda answer: [one["score"] for one in answer["data"][0]],
            exact=False,
        )
