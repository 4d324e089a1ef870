"""A real Prometheus on a free port, and rules whose windows are short enough for a test."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from build_scripts.benchmarks.subprocesses import free_ports
from tests.support.waiting import HANG_S, wait_for

RECORD = "text_classifier_waiting_requests"


def hurried(rules: list[Path]) -> list[Path]:
    """Copies of the rules whose windows are seconds, so that an alert can be seen to fire; their names end in Soon.

    They ask for a hundredth of the answers. Restarts keep their window, because three of them take longer than seconds.
    """
    files = []
    for file in rules:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        for group in content["groups"]:
            group["name"] += "-soon"
            group.pop("interval", None)
            group["rules"] = [rule for rule in group["rules"] if rule.get("record") != RECORD]
            for rule in group["rules"]:
                rule["expr"] = soon(rule["expr"])
                if "record" in rule:
                    rule["record"] = rule["record"].replace("text_classifier:", "soon:")
                else:
                    rule.update(alert=rule["alert"] + "Soon", **{"for": "1s"})
        files.append(file.with_name(f"soon-{file.name}"))
        files[-1].write_text(yaml.safe_dump(content), encoding="utf-8")
    return files


def soon(expression: str) -> str:
    if "resets(" not in expression:
        expression = re.sub(r"(\[|offset )\d+[mhd]", r"\g<1>10s", expression)
    expression = expression.replace("> 1000", "> 10").replace("> 100 *", "> 1 *")
    return expression.replace("text_classifier:", "soon:")


@dataclass
class Watch:
    """A Prometheus at work. query(expression, at): its answer. since: when it had scraped everything."""

    query: Callable[..., list[dict]]
    since: float

    def __call__(self, *arguments) -> list[dict]:
        return self.query(*arguments)

    def fired(self, since: float | None = None) -> set[str]:
        """Alerts that have fired, without the project's name and the end. Before the first scrape all is absent."""
        seconds = max(1, int(time.time() - (since or self.since)))
        found = self.query(f'last_over_time(ALERTS{{alertstate="firing"}}[{seconds}s])')
        return {one["metric"]["alertname"].removeprefix("TextClassifier").removesuffix("Soon") for one in found}


@contextlib.contextmanager
def scraping(
    directory: Path, rules: list[Path], targets: dict[str, str], labels: dict[str, str]
) -> Iterator[Callable[..., list[dict]]]:
    """query(expression, at) of a Prometheus that scrapes every second. targets: job -> address."""
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": list(map(str, rules)),
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": labels}]}
            for job, target in targets.items()
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")
    (port,) = free_ports(1)
    options = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data")
    with (directory / "output.txt").open("wb") as output:
        command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=output, stderr=output)

    def query(expression: str, at: float | None = None) -> list[dict]:
        parameters = {"query": expression, **({"time": at} if at else {})}
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=HANG_S) as response:
            return json.load(response)["data"]["result"]

    def answers() -> bool:
        assert process.poll() is None, (directory / "output.txt").read_text(encoding="utf-8")
        with contextlib.suppress(OSError):  # it does not listen yet, or says 503 while it starts
            query("up")
            return True
        return False

    try:
        wait_for(answers, "Prometheus does not answer")
        yield query
    finally:
        process.terminate()
        process.wait(HANG_S)
