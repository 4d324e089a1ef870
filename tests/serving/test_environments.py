"""Surroundings of `make serve`: it works, or says in one line what is missing.

Two supervisors, and one that was killed: test_run_state and test_faults. Paths with blanks and other letters: the same
and test_plain_paths.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from build_scripts.benchmarks.services import infer_body
from build_scripts.core.paths import BUILD, PROJECT
from tests.support.servers import post, running, start
from tests.support.waiting import HANG_S

INFER = "/v2/models/text_classifier/infer"
BODY = infer_body(["a text"])
RUNS = BUILD / "serve"

pytestmark = pytest.mark.server


def prepared(script: str, *namespaces: str) -> list[str]:
    """A command that runs a shell script, in new namespaces, then executes the command behind it."""
    enter = ["unshare", *namespaces] if namespaces else []
    if enter and not (
        shutil.which("unshare") and subprocess.run([*enter, "true"], capture_output=True).returncode == 0
    ):
        pytest.skip(f"`{' '.join(enter)}` is not allowed here; root may")
    return [*enter, "sh", "-ec", f'{script}\nexec "$@"', "sh"]


OF_MOUNTS = ("--mount",)
NO_ROOM = f"mkdir -p '{RUNS}'; mount -t tmpfs -o size=64k tmpfs '{RUNS}'; cat /dev/zero > '{RUNS}/full' 2>&- || true"
# The user has no name, no home and no capabilities; the files are still its own.
NOBODY = ("--user", "--map-user=4321", "--map-group=4321")


@pytest.fixture
def serving(tiny_repository, subject, tmp_path) -> Callable:
    """serving(start or running, within): a server of the tiny model."""
    where = (tiny_repository, tmp_path / "output.txt", "--model", str(subject("bert").directory), "--precision", "fp32")
    return lambda how, within: how(*where, within=within)


@pytest.mark.parametrize(
    ("script", "namespaces"),
    [
        pytest.param("mount -t tmpfs -o size=64m tmpfs /dev/shm", OF_MOUNTS, id="64 MiB of /dev/shm"),
        pytest.param("unset HOME", NOBODY, id="no root and no HOME", marks=pytest.mark.long),
        pytest.param("ulimit -n 256", (), id="256 open files", marks=pytest.mark.long),
        pytest.param(f"ulimit -v {32 << 20}", (), id="32 GiB of address space"),
        pytest.param("export PYTORCH_JIT=0 PYTHONWARNINGS=error PYTHONOPTIMIZE=2", (), id="variables of Python"),
        pytest.param("export LC_ALL=C; unset PYTHONUTF8 PYTHONIOENCODING", (), id="LC_ALL=C", marks=pytest.mark.long),
        pytest.param(
            "export http_proxy=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9 ALL_PROXY=http://127.0.0.1:9",
            (),
            id="proxies",
            marks=pytest.mark.long,
        ),
    ],
)
def test_it_serves(serving, script, namespaces):
    with serving(running, prepared(script, *namespaces)) as server:
        assert post(server.http + INFER, BODY)[0] == 200
        assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("script", "namespaces", "words"),
    [
        pytest.param(NO_ROOM, OF_MOUNTS, "No space left", id="a full disk for models, state and log"),
        pytest.param("mount -t proc -o subset=pid proc /proc", OF_MOUNTS, "ProcSubset=pid", id="no machine in /proc"),
        pytest.param(
            "mount -t tmpfs -o size=512k tmpfs /dev/shm", OF_MOUNTS, "shared memory", id="512 KiB of /dev/shm"
        ),
        pytest.param(f"mount --bind -o ro '{PROJECT}' '{PROJECT}'", OF_MOUNTS, "", id="a read-only checkout"),
    ],
)
def test_it_says_in_one_line_what_is_missing(serving, script, namespaces, words):
    server = serving(start, prepared(script, *namespaces))
    try:
        assert server.process.wait(HANG_S) == 1
        said = [line for line in server.said().splitlines() if line.startswith("error:")]
        assert len(said) == 1
        assert words in said[0]
        assert "Traceback" not in server.said()
    finally:
        server.remove()
