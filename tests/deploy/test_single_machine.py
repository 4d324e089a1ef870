"""A machine without Kubernetes: the systemd unit and the compose file, as far as they can be tried without a daemon."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from build_scripts.core.paths import PROJECT
from build_scripts.serving.start.tritonserver import EXIT_TIMEOUT_S
from tests.deploy.conftest import await_well
from tests.support.containers import run
from tests.support.deploy_tools import need
from tests.support.manifests.pods import server_options

DEPLOY = PROJECT / "deploy"
UNIT = DEPLOY / "systemd" / "text-classifier.service"
# systemd's exposure level, from 0 (locked up) to 10 (unsafe), in tenths.
EXPOSURE = 20


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit, with a program that exists in the place of /opt's."""
    text = UNIT.read_text(encoding="utf-8")
    program = re.search(r"(?m)^ExecStart=(\S+)", text)[1]
    file = tmp_path / UNIT.name
    file.write_text(text.replace(program, "/bin/true"), encoding="utf-8")
    return file


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess:
    if run("which", "systemd-analyze", check=False).returncode:
        pytest.skip("not installed: systemd")
    return run("systemd-analyze", *arguments, check=False)


def test_the_unit_is_valid(unit):
    done = analyze("verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_setting_of_the_unit_is_noticed(unit):
    unit.write_text(unit.read_text(encoding="utf-8").replace("ProtectHome=", "ProtectedHome="), encoding="utf-8")
    assert "ProtectedHome" in analyze("verify", unit).stderr


def test_the_unit_is_locked_up(unit):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout


def test_the_units_command_and_limits_fit_the_launcher():
    text = UNIT.read_text(encoding="utf-8")
    command = re.search(r"(?m)^ExecStart=(.*)", text)[1].split()
    assert {word for word in command if word.startswith("--")} <= server_options()
    settings = dict(re.findall(r"(?m)^(\w+)=(.*)$", text))
    # The launcher refuses to start with these.
    assert not settings.keys() & {"MemoryDenyWriteExecute", "ProcSubset", "LimitAS"}
    drain = int(command[command.index("--drain") + 1])
    assert int(settings["TimeoutStopSec"]) >= drain + EXIT_TIMEOUT_S + 10
    assert settings["LimitSTACK"] == "infinity"


@pytest.mark.server
def test_the_server_runs_with_the_units_system_calls(start):
    """And with a /proc that shows a process only its own, as ProtectProc= mounts it."""
    groups = re.search(r"(?m)^SystemCallFilter=(.*)", UNIT.read_text(encoding="utf-8"))[1].split()
    calls: set[str] = set()
    while groups:
        listed = analyze("syscall-filter", groups.pop()).stdout.split("\n")[1:]
        names = [line.split("#")[0].strip() for line in listed]
        groups += [name for name in names if name.startswith("@")]
        calls |= {name for name in names if name and not name.startswith("@")}
    assert 200 < len(calls) < 400
    await_well(start(23, system_calls=sorted(calls), own_processes_only=True))


def test_the_compose_file_is_valid():
    need("docker-compose")
    run("docker-compose", "-f", DEPLOY / "compose.yaml", "config", "--quiet")


def test_the_compose_file_fits_image_and_proxy():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    server, proxy = services["text-classifier"], services["proxy"]
    assert {word for word in server["command"] if word.startswith("--")} <= server_options()
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    configuration = (DEPLOY / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")
    assert proxy["environment"].keys() <= set(re.findall(r"\$\{(\w+)\}", configuration))
    assert proxy["environment"]["REPLICAS_NAME"] in services
    assert "./proxy/haproxy.cfg:/etc/haproxy/haproxy.cfg:ro" in proxy["volumes"]
    assert [port.rpartition(":")[2] for port in proxy["ports"]] == re.findall(r"bind :(\d+)", configuration)
    for service in (server, proxy):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert int(server["stop_grace_period"].rstrip("s")) >= int(server["command"][-1]) + EXIT_TIMEOUT_S + 10
