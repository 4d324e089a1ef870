"""Output that cannot be written ends no process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from build_scripts.core.paths import PROJECT
from tests.support.waiting import HANG_S

CODE = """
import sys
from build_scripts.serving.keep.output import outlive_output, say
sys.stdin.readline()
outlive_output()
for _ in range(3):
    say("a message")
    print("a line", flush=True)
print("unflushed", end="")
open(sys.argv[1], "w").write("alive")
"""


@pytest.mark.parametrize("stream", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("kind", ["a pipe without a reader", "a full disk"])
def test_lost_output_is_ignored(tmp_path, stream, kind):
    alive = tmp_path / "alive"
    target = subprocess.PIPE if kind == "a pipe without a reader" else os.open("/dev/full", os.O_WRONLY)
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(alive)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=target if stream != "stderr" else subprocess.DEVNULL,
        stderr=target if stream != "stdout" else subprocess.DEVNULL,
    )
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()
    process.communicate(b"\n", timeout=HANG_S)
    assert process.returncode == 0
    assert alive.read_text() == "alive"


def test_output_that_can_be_written_arrives(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "alive")], cwd=PROJECT, input="\n", capture_output=True, text=True
    )
    assert done.stdout == 3 * "a line\n" + "unflushed"
    assert done.stderr.count(" a message\n") == 3
