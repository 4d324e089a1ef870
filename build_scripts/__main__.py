"""The command line: `python -m build_scripts --help`. Each wing has its commands in `commands.py`."""

from __future__ import annotations

import sys

from build_scripts.benchmarks.commands import COMMANDS as BENCHMARKS
from build_scripts.core.command_line import run_one_of
from build_scripts.quality.commands import COMMANDS as QUALITY
from build_scripts.releases.commands import COMMANDS as RELEASES
from build_scripts.serving.commands import COMMANDS as SERVING

COMMANDS = {command.name: command for command in (*RELEASES, *SERVING, *QUALITY, *BENCHMARKS)}


def main() -> None:
    sys.exit(run_one_of(COMMANDS.values()))


if __name__ == "__main__":
    main()
