"""How many cores a process may keep busy, where a container gives it fewer than the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from build_scripts.core import machine
from build_scripts.core.paths import PROJECT
from build_scripts.serving.start.environment import tuning


def layout(tmp_path, own: str, files: dict[str, str]):
    """A made-up /sys/fs/cgroup and /proc/self/cgroup."""
    root, cgroup = tmp_path / "cgroup", tmp_path / "own"
    cgroup.write_text(own, encoding="utf-8")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root, cgroup


V1 = "4:cpu,cpuacct:/kubepods/pod1\n3:cpuset:/kubepods\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        # The tightest level counts, wherever it is.
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        # A container without a cgroup namespace sees the host's path, and its own group as the root.
        ("0::/kubepods/not-visible\n", {"cpu.max": "50000 100000\n"}, 0.5),
        # systemd's hybrid layout.
        ("0::/a\n", {"unified/a/cpu.max": "300000 100000\n"}, 3.0),
        (
            V1,
            {
                "cpu,cpuacct/kubepods/pod1/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/kubepods/pod1/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("", {}, None),
    ],
)
def test_the_tightest_quota_of_either_version_is_found(tmp_path, own, files, quota):
    assert machine.cpu_quota(*layout(tmp_path, own, files)) == quota


@pytest.mark.parametrize(("quota", "cores"), [(None, 64), (2.0, 2), (1.5, 2), (0.2, 1), (100.0, 64)])
def test_a_pod_with_a_quota_on_a_big_node_starts_a_thread_for_each_of_its_cpus_16_at_most(monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine.cores() == cores
    assert tuning()["OMP_NUM_THREADS"] == str(min(cores, 16))  # a short text gains nothing from more


def test_the_users_own_number_of_threads_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in tuning()


@pytest.mark.parametrize(("own", "spins"), [({}, "6000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_for_each_other_leave_the_cores_to_others_soon_unless_the_user_says_otherwise(own, spins):
    """Said before torch is there: its OpenMP reads the variable when it is loaded."""
    command = "import sys, os, build_scripts.core.options; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    others = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    run = subprocess.run(
        [sys.executable, "-c", command], env={**others, **own}, cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [spins, "False"]
