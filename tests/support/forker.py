"""Run `repo` in processes that start at once: this process has imported everything, and forks.

    python -m tests.support.forker

Reads a JSON list per line from stdin: a file for the output, then the arguments. Answers each with the child's id. A
child that was not killed leaves its exit code in the file, on the last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.paths import PROJECT
from tests.support.waiting import HANG_S


class Forker:
    """The side of the tests. command: what to put in front of the interpreter, `unshare …` for example."""

    def __init__(self, process: subprocess.Popen, outputs: Path):
        self.process, self.outputs, self.count = process, outputs, 0

    def start(self, *arguments: object) -> Child:
        self.count += 1
        output = self.outputs / f"{self.count}.txt"
        self.process.stdin.write(json.dumps([str(output), *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        return Child(int(self.process.stdout.readline()), output)

    def run(self, *arguments: object) -> str:
        """Start a child that must succeed, and return what it printed."""
        child = self.start(*arguments)
        code, text = child.wait()
        assert code == 0, text
        return text


class Child:
    def __init__(self, pid: int, output: Path):
        self.pid, self.output = pid, output

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> tuple[int | None, str]:
        """Exit code, None if it was killed, and output."""
        deadline = time.monotonic() + HANG_S
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)
        *lines, last = self.text().splitlines() or [""]
        return (int(last.removeprefix("exit ")), "\n".join(lines)) if last.startswith("exit ") else (None, self.text())

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""


@contextlib.contextmanager
def forking(outputs: Path, *command: str) -> Iterator[Forker]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(
        [*command, sys.executable, "-m", "tests.support.forker"],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield Forker(process, outputs)
        finally:
            process.kill()


def main() -> None:
    # ruff: noqa: F401 (imported here once, for all children)
    import transformers.models.bert.modeling_bert
    import transformers.models.bert.tokenization_bert

    from build_scripts import __main__ as command_line
    from build_scripts.convert import checkpoint, export, parity, precision
    from build_scripts.releases import pipeline, summary

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children vanish when they end
    print("ready", flush=True)
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.argv = ["build_scripts", "repo", *arguments]
        try:
            command_line.main()
        except SystemExit as exit_:
            print(f"\nexit {exit_.code or 0}", flush=True)
        finally:
            os._exit(1)


if __name__ == "__main__":
    main()
