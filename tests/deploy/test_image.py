"""The image with the embedded server, run as a strict cluster runs it: it answers, fits, and stops in order."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.deploy.conftest import await_well, debian
from tests.deploy.test_manifests import DEPLOY, render
from tests.support.balancers import TEXT_REQUEST
from tests.support.containers import MIB, run
from tests.support.deploy_tools import TOOLS
from tests.support.manifests.whole import argument
from tests.support.waiting import HANG_S, wait_for

pytestmark = pytest.mark.server
STRICT = """
import os, pathlib, sys
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
assert os.getuid() == 1000 and os.getgid() == 1000
assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapBnd"]
assert status["NoNewPrivs"].strip() == "1"
for place in ("/", "/app/build", "/models", "/opt/venv"):
    try:
        pathlib.Path(place, "probe").touch()
    except OSError:
        continue
    sys.exit(f"{place} can be written to")
"""


@pytest.fixture(scope="module")
def container(start):
    started = start(21, cpus=1)
    await_well(started)
    return started


def test_answers_from_outside_its_network_namespace(container, network):
    path, arguments = TEXT_REQUEST
    done = run(*network.enter(network.balancer), "curl", "-sS", "-m", "10", f"{container.http}{path}", *arguments)
    assert '"CLASS_ID":7' in done.stdout


def test_runs_without_root_capabilities_or_writable_root(container):
    container.inside("python", "-c", STRICT)


def classify(texts: str, port: str = "8000") -> str:
    """Python that has texts classified in the container; prints a line once all is sent, and how many answers came."""
    return (
        f"import http.client, json; connection = http.client.HTTPConnection('127.0.0.1', {port}, timeout={HANG_S}); "
        f"body = json.dumps({{'TEXT': {texts}}}); "
        "connection.request('POST', '/v2/models/text_classifier/generate', body); print('sent', flush=True); "
        "print(len(json.load(connection.getresponse())['CLASS_ID']))"
    )


def processes(container) -> dict[str, str]:
    """First words of a command line -> pid, of everything that runs in the container."""
    listed = container.inside(
        "sh", "-c", "for p in /proc/[0-9]*; do echo ${p#/proc/} $(tr '\\0' ' ' < $p/cmdline); done"
    )
    return {words[1]: words[0] for line in listed.stdout.splitlines() if len(words := line.split(maxsplit=1)) == 2}


def pid_of(container, word: str) -> str:
    found = [pid for command, pid in processes(container).items() if word in " ".join(command.split()[:2])]
    assert len(found) == 1, processes(container)
    return found[0]


def test_the_server_has_the_stack_that_a_long_request_needs(container):
    """A pod has no field for it, so the launcher sets it."""
    limits = container.inside("cat", f"/proc/{pid_of(container, 'bin/tritonserver')}/limits").stdout
    assert re.search(r"Max stack size +1073741824 ", limits)
    assert container.inside("python", "-c", classify("['word ' * 24_000] * 8")).stdout == "sent\n8\n"


def test_a_quota_of_one_cpu_starts_one_thread(container):
    """Not one a core of the node: they would wait for each other while the quota keeps them stopped."""
    environment = container.inside("cat", f"/proc/{pid_of(container, 'bin/tritonserver')}/environ").stdout
    assert "OMP_NUM_THREADS=1\0" in environment


def test_fits_into_memory_and_shared_memory(container):
    found = container.inside("cat", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes", check=False)
    if found.returncode:  # version 2
        found = container.inside("cat", "/sys/fs/cgroup/memory.peak")
    assert int(found.stdout) < 1536 * MIB
    size, used = container.inside("df", "--output=size,used", "-B1", "/dev/shm").stdout.split()[2:]
    assert int(used) < int(size) == 64 * MIB


def test_health_fails_while_a_models_process_is_dead(start):
    """What Triton's own readiness does not notice. The supervisor then brings the service back."""
    one = start(22)
    await_well(one)
    killed = pid_of(one, "tokenizer/1")
    one.inside("python", "-c", f"import os, signal; os.kill({killed}, signal.SIGKILL)")
    health = ("python", "-S", "-E", "-m", "build_scripts.serving.keep.health")
    wait_for(lambda: one.inside(*health, check=False).returncode != 0, one.said)
    await_well(one)
    assert pid_of(one, "tokenizer/1") != killed
    one.remove()


def test_the_image_says_what_it_is(image):
    assert image.config["Labels"]["org.opencontainers.image.version"] == "one"
    assert image.config["User"] == "1000:1000"


def test_nvidias_image_is_built_without_venv_and_ensurepip(build):
    """On a base like NVIDIA's: pip and virtualenv, and no ensurepip. Its launcher runs, as the image's user."""
    base = debian(TOOLS / "like-nvidia", "python3", "python3-pip", "python3-virtualenv")
    assert not list(base.glob("usr/lib/python3*/ensurepip"))
    image = build("Containerfile", base)
    path = dict(variable.split("=", 1) for variable in image.config["Env"])["PATH"]
    inside = ("chroot", "--userspec=1000:1000", image.root, "env", f"PATH={path}", "sh", "-c")
    assert run(*inside, "cd /app && python -m build_scripts --version").stdout.strip()
    assert run(*inside, "find /app /models ! -readable").stdout == ""
    probe = "cd /app && " + " ".join(image.config["Healthcheck"]["Test"][1:])
    assert run(*inside, probe, check=False).returncode == 1  # nothing serves
    served = "cd /app && " + " ".join([*image.config["Entrypoint"], *image.config["Cmd"]])
    done = run(*inside, served, check=False)  # the base has no tritonserver, and a chroot no /proc
    assert (done.returncode, done.stderr[:7], done.stderr.count("\n")) == (1, "error: ", 1), done.stderr


def test_stop_answers_requests_in_flight(start, network):
    one = start(22)
    await_well(one)
    in_flight = one.inside_later("python", "-c", classify("['word ' * 600] * 12"))
    assert in_flight.stdout.readline() == "sent\n"
    time.sleep(0.1)  # Triton reads it
    assert in_flight.poll() is None
    one.signal("TERM")
    assert one.wait() == 0, one.said()
    assert in_flight.communicate()[0] == "12\n", one.said()


def exit_code(container, probe: dict) -> int:
    return container.inside(*probe["exec"]["command"], check=False).returncode


@pytest.mark.parametrize("name", ["base", "kserve"])
def test_a_manifests_command_and_probes_run_in_the_image(start, image, packed, name):
    """Until all three probes pass, and through the drain: then it is alive and not ready. The log holds no text."""
    ((_, pod),) = render(DEPLOY, name).pods.values()
    (asked,) = pod["containers"]
    command = [*asked.get("command", image.config["Entrypoint"]), *asked["args"]]
    models_at = command[command.index("--model-repository") + 1]
    one = start(24, command=command, models=packed.directory / "model_repository", models_at=models_at, cpus=1)
    for kind in ("startup", "readiness", "liveness"):
        probe = asked[f"{kind}Probe"]
        wait_for(lambda probe=probe: exit_code(one, probe) == 0, one.said)
    one.inside("python", "-c", classify("['private words'] * 2", argument(asked, "--http-port", "8000")))
    one.signal("TERM")
    wait_for(lambda: exit_code(one, asked["readinessProbe"]) == 3, one.said, limit_s=10)
    assert exit_code(one, asked["livenessProbe"]) == 0
    assert one.wait() == 0, one.said()
    assert {json.loads(line)["source"] for line in one.said().splitlines()} == {"supervisor", "tritonserver"}
    assert "private words" not in one.said()
    one.remove()
