"""Numbers, tables and charts of the reports."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_scripts.benchmarks import report


@given(st.floats(1e-4, 1e6))
def test_numbers_have_three_significant_digits(value):
    text = report.number(value)
    assert "e" not in text
    assert float(text) == (round(value) if value >= 100 else float(f"{value:.3g}"))
    assert report.number(-value) == f"-{text}"


def test_known_numbers_and_ratios():
    assert [report.number(value) for value in (0, 0.01234, 9.996, 99.96, 1240.4)] == [
        "0",
        "0.0123",
        "10.0",
        "100",
        "1240",
    ]
    assert [report.ratio(value, 4.0) for value in (4, 50, 4000)] == ["1.0×", "12.5×", "1000×"]


@pytest.mark.slow
def test_charts_are_written_as_png_and_svg(tmp_path):
    pytest.importorskip("matplotlib", reason="the group bench is not installed")
    report.latency_chart(tmp_path / "sweep", [report.Sweep("short", [1, 2], [10, 19], [5, 6], [9, 12])] * 3)
    report.bar_chart(
        tmp_path / "bars", ["first", "second"], ["grey", "blue"], [report.Bars("b", "ms", [1, 2], ["x", "y"])]
    )
    for name in ("sweep", "bars"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
