"""The command line: `python -m build_scripts --help`. Each wing has its commands in `commands.py`."""

from __future__ import annotations

import os
import sys

from build_scripts.benchmarks.commands import COMMANDS as BENCHMARKS
from build_scripts.core.command_line import run_one_of
from build_scripts.quality.commands import COMMANDS as QUALITY
from build_scripts.releases.commands import COMMANDS as RELEASES
from build_scripts.serving.commands import COMMANDS as SERVING

COMMANDS = {command.name: command for command in (*RELEASES, *SERVING, *QUALITY, *BENCHMARKS)}


# Variables that change what Python code means, for all that a command imports and starts. With them a build fails and
# blames the checkpoint: PYTORCH_JIT=0 switches TorchScript off, errors for warnings end the import of torch.
UNWANTED = ("PYTORCH_JIT", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONDEVMODE", "PYTHONINSPECT")


def main() -> None:
    if any(name in os.environ for name in UNWANTED):
        environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    sys.exit(run_one_of(COMMANDS.values()))


if __name__ == "__main__":
    main()
