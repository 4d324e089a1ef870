"""What a build prints of the precisions that it tried."""

from __future__ import annotations

import pytest

from build_scripts.build.summary import verdict


@pytest.mark.parametrize(
    ("precision", "passed", "chosen", "said"),
    [
        ("bf16", True, "bf16", "chosen"),
        ("fp32", True, "bf16", "passed"),
        ("bf16", False, "fp32", "rejected"),
        ("bf16", False, "bf16", "chosen as asked, though it does not answer like fp32"),
    ],
)
def test_a_precision_that_failed_the_gate_is_never_just_chosen(precision, passed, chosen, said):
    assert verdict({"precision": precision, "passed": passed}, chosen) == said
