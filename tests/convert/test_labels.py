"""labels.txt: each name is on the line of its class id, whatever the names contain."""

from __future__ import annotations

import pytest

from build_scripts.convert.checkpoint import load
from build_scripts.convert.labels import write_labels
from build_scripts.core.errors import ServingError
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def triton_lines(content: bytes) -> list[str]:
    """The lines of a file as Triton's label provider reads them: std::getline, at line feeds only."""
    *lines, rest = content.decode("utf-8").split("\n")
    return [*lines, rest] if rest else lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
def test_line_ends_in_labels_shift_no_name(end, tmp_path):
    """id2label made from readlines(): every name carries its line's end, but perhaps the last."""
    names = ["财经", " two words ", "c:d", "tab\there", "e", "f"]
    written = [name + end for name in names[:-1]] + names[-1:]
    checkpoint = load(make_checkpoint("bert", tmp_path / "checkpoint", labels=written))
    assert checkpoint.labels == names
    write_labels(checkpoint.labels, tmp_path / "labels.txt")
    assert triton_lines((tmp_path / "labels.txt").read_bytes()) == names


def test_only_a_line_feed_ends_a_line(tmp_path):
    """Python's splitlines knows more line ends than Triton does; such names stay as they are."""
    names = ["form\ffeed", "next\x85line", "line\u2028separator"]
    checkpoint = load(make_checkpoint("bert", tmp_path / "checkpoint", labels=names))
    write_labels(checkpoint.labels, tmp_path / "labels.txt")
    assert triton_lines((tmp_path / "labels.txt").read_bytes()) == names


@pytest.mark.parametrize("name", ["", " ", "\n", "two\nlines", "two\rlines", "half \ud83d"])
def test_refuses_a_label_that_is_not_one_line(name, tmp_path):
    with pytest.raises(ServingError, match=r"label 1 in .* expected one non-empty line: mend id2label"):
        load(make_checkpoint("bert", tmp_path / "checkpoint", labels=["a", name, "c"]))


def test_written_labels_are_read_back(tmp_path):
    with pytest.raises(ServingError, match="would have 3 lines for 2 labels"):
        write_labels(["a", "b\nc"], tmp_path / "labels.txt")
