"""Cross-checks of rendered manifests: every name, port, label and number that two places must agree on.

Beside schemas, which know fields and types but not what they refer to.
"""

from __future__ import annotations

from tests.support.manifests import observing, pods, wiring
from tests.support.manifests.whole import Whole

CHECKS = (
    *(wiring.selectors, wiring.ports, wiring.networks, wiring.others),
    *(pods.containers, pods.probes, pods.stopping, pods.volumes, pods.images),
    *(observing.scaling, observing.monitoring),
)


def problems(whole: Whole) -> list[str]:
    """A sentence for each place that disagrees with another."""
    return [f"{whole.name}: {problem}" for check in CHECKS for problem in check(whole)]
