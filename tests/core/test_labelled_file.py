"""Labelled files: every format gives the same rows, and every bad row is named by its line."""

from __future__ import annotations

import json

import pytest

from build_scripts.core.errors import ServingError
from build_scripts.core.labelled_file import BadRow, Columns, Row, class_ids_of, read_labelled

ROWS = [("Rates rise", "finance"), ("Team wins, again", "sports"), ('A "quoted" text', "sports")]


def rows_of(file, columns=Columns()):  # noqa: B008 (frozen)
    return list(read_labelled(file, columns))


def as_tsv(header: bool) -> str:
    lines = ["text\tlabel"] if header else []
    return "".join(f"{line}\n" for line in [*lines, *("\t".join(row) for row in ROWS)])


FORMATS = {
    "plain.tsv": as_tsv(header=False),
    "header.tsv": as_tsv(header=True),
    "crlf.tsv": as_tsv(header=False).replace("\n", "\r\n"),
    "bom.tsv": "\ufeff" + as_tsv(header=True),
    "rows.csv": 'label,text\nfinance,Rates rise\nsports,"Team wins, again"\nsports,"A ""quoted"" text"\n',
    "rows.jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name, tmp_path):
    file = tmp_path / name
    file.write_text(FORMATS[name], encoding="utf-8", newline="")
    assert [(row.text, *row.labels) for row in rows_of(file)] == ROWS


def test_three_columns_are_a_pair(tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("A dog runs.\tAn animal moves.\tyes\n")
    assert rows_of(file) == [Row(1, ("A dog runs.", "An animal moves."), ("yes",))]


def test_columns_can_be_named(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("id,headline,topic\n7,Rates rise,finance\n")
    assert rows_of(file, Columns("headline", "pair", "topic")) == [Row(2, "Rates rise", ("finance",))]


def test_a_missing_column_lists_those_there_are(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("id,headline\n7,Rates rise\n")
    with pytest.raises(ServingError, match=r"columns id, headline, and no text and no label.*TEXT_COLUMN"):
        rows_of(file)


def test_bad_rows_carry_their_line_and_the_others_are_read(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_text("Rates rise\tfinance\nno label\n\tsports\nTeam wins\t\na\tb\tc\td\nTeam wins\tsports\n")
    found = rows_of(file)
    assert [row.line for row in found if isinstance(row, BadRow)] == [2, 3, 4, 5]
    assert [row.line for row in found if isinstance(row, Row)] == [1, 6]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"text": 3, "label": "a"}', '{"text": "a"}', '{"text": "a", "label": ""}']
)
def test_a_bad_json_line_is_a_bad_row(line, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(line + "\n")
    assert [type(row) for row in rows_of(file)] == [BadRow]


def row(*labels: str) -> Row:
    return Row(4, "text", labels)


LABELS = ["no", "yes", "10"]


@pytest.mark.parametrize(("label", "class_id"), [("yes", 1), ("0", 0), ("10", 2)])
def test_a_label_is_a_name_before_it_is_a_number(label, class_id):
    assert class_ids_of(row(label), LABELS, multi_label=False) == [class_id]


@pytest.mark.parametrize("label", ["maybe", "3", "-1"])
def test_an_unknown_label_lists_the_models(label):
    with pytest.raises(ServingError, match=rf"line 4 has the label '{label}'; this model's labels are no, yes, 10$"):
        class_ids_of(row(label), LABELS, multi_label=False)


def test_many_labels_are_not_printed_all():
    with pytest.raises(ServingError, match=r"l9 … 5000 in all"):
        class_ids_of(row("x"), [f"l{index}" for index in range(5000)], multi_label=False)


@pytest.mark.parametrize(
    ("labels", "ids"), [(("no|yes",), [0, 1]), (("no", "yes"), [0, 1]), (("-",), []), ((), []), (("10",), [2])]
)
def test_a_text_may_have_several_labels_or_none(labels, ids):
    assert class_ids_of(row(*labels), LABELS, multi_label=True) == ids


def test_several_labels_are_refused_for_a_single_label_model():
    with pytest.raises(ServingError, match="line 4 has 2 labels"):
        class_ids_of(row("no", "yes"), LABELS, multi_label=False)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    file = tmp_path / "rows.tsv"
    file.write_bytes("Größe\tfinance\n".encode("latin-1"))
    with pytest.raises(ServingError, match="is not UTF-8"):
        rows_of(file)
