"""What the supervisor sees of real processes."""

from __future__ import annotations

import signal
import sys

import psutil

from build_scripts.serving.keep.processes import RUNNING, SLEEPING, STOPPED, ZOMBIE, Process, processes_of, worked
from tests.support.waiting import wait_for


def state_of(pid: int, of: int) -> str:
    return processes_of(of).get(pid, Process("", "", 0.0)).state


def test_idle_process_sleeps(process):
    server = process("sleep", "60")
    wait_for(lambda: state_of(server.process.pid, server.process.pid) == SLEEPING, "not asleep")


def test_thread_that_computes_makes_its_process_runnable(process):
    """The first thread of tritonserver always sleeps; it is the others that work."""
    code = "import threading, time\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\ntime.sleep(60)"
    server = process(sys.executable, "-c", code)
    pid = server.process.pid
    wait_for(lambda: psutil.Process(pid).num_threads() == 2, "no thread")
    wait_for(lambda: processes_of(pid)[pid].state == RUNNING, "not running")
    before = processes_of(pid)[pid].cpu_s
    wait_for(lambda: processes_of(pid)[pid].cpu_s > before, "no CPU time")


def test_killed_child_is_a_zombie_and_a_stopped_one_is_stopped(process):
    server = process("sh", "-c", "sleep 60 & sleep 61 & exec sleep 62")
    parent = psutil.Process(server.process.pid)
    wait_for(lambda: len(parent.children()) == 2 and parent.name() == "sleep", "no children")
    first, second = parent.children()
    first.kill()
    second.send_signal(signal.SIGSTOP)
    wait_for(lambda: state_of(first.pid, parent.pid) == ZOMBIE, "no zombie")
    wait_for(lambda: state_of(second.pid, parent.pid) == STOPPED, "not stopped")


def test_stub_is_known_by_its_model(process, tmp_path):
    stub = tmp_path / "classifier" / "1" / "model.py"
    stub.parent.mkdir(parents=True)
    stub.write_text("while :; do sleep 0.5; done\n")
    server = process("sh", "-c", f"sh {stub} & wait")
    wait_for(lambda: "classifier" in models_of(server.process.pid), "no model")


def models_of(tritonserver: int) -> list[str]:
    return [one.model for one in processes_of(tritonserver).values()]


def test_tritonserver_runs_no_model_whatever_its_arguments(process, tmp_path):
    """Its first argument names the model repository: a path as a stub's."""
    script = tmp_path / "build" / "serve" / "8000" / "staging"
    script.parent.mkdir(parents=True)
    script.write_text("sleep 60\n")
    server = process("sh", str(script))
    wait_for(lambda: str(script) in psutil.Process(server.process.pid).cmdline(), "not started")
    assert models_of(server.process.pid)[0] == ""


def test_ended_process_is_left_out(process):
    server = process("true")
    server.process.wait()
    assert processes_of(server.process.pid) == {}


def test_work_is_cpu_time_or_the_wait_for_it():
    before = Process("classifier", SLEEPING, 10.0)
    assert not worked(before._replace(cpu_s=10.02), before, 1.0)
    assert worked(before._replace(cpu_s=10.05), before, 1.0)
    assert worked(before._replace(state=RUNNING), before, 1.0)
