"""Tables of reports."""

from __future__ import annotations

import pytest

from build_scripts.core.markdown import table


def test_a_table_is_rectangular_and_its_cells_hold_no_bars():
    lines = table(["name", "ms"], [["a|b", "1"], ["c", "2"]]).splitlines()
    assert [line.count("|") for line in lines] == [3] * 4
    assert lines[1] == "| --- | ---: |"
    with pytest.raises(ValueError, match="3 cells, the header 2"):
        table(["name", "ms"], [["a", "1", "2"]])
