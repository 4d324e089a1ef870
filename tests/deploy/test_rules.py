"""Recording and alerting rules, by promtool: each alert fires when it should, and is silent otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.conftest import RULES
from tests.support.containers import run
from tests.support.deploy_tools import need


def alerts(rules: Path) -> set[str]:
    return {name for file in RULES for name in re.findall(r"alert: (\w+)", (rules / file).read_text(encoding="utf-8"))}


def test_rules_are_valid_and_every_alert_fires_when_it_should(rules):
    need("prometheus")
    run("promtool", "check", "rules", "--lint-fatal", *(rules / name for name in RULES))
    run("promtool", "test", "rules", *sorted(rules.glob("*_test.yaml")))


def test_every_alert_has_a_test_that_makes_it_fire(rules):
    tests = "".join(file.read_text(encoding="utf-8") for file in rules.glob("*_test.yaml"))
    assert len(alerts(rules)) >= 14
    assert set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests)) == alerts(rules)


def test_every_alert_is_silent_beside_another_teams_metrics(rules):
    """Except the alerts that say that this service is gone, which the others' series must not hide."""
    tests = (rules / "rules_test.yaml").read_text(encoding="utf-8")
    beside = tests[tests.index("another team") :].split("  - name: ")[0]
    assert set(re.findall(r"alertname: (\w+)", beside)) == alerts(rules)
