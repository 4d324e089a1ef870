"""Read labelled texts: TSV, CSV with a header, or JSON lines, told apart by the file's ending.

A TSV line holds text and label, or text, pair and label; a header is recognised by the column names. Several labels of
one text are a JSON list, or names with `|` between them. Knows no model: `labels.class_ids_of` looks names up.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from build_scripts.core.errors import ServingError

JSON_ENDINGS = {".json", ".jsonl", ".ndjson"}
# Labels that an error message prints before it gives a number instead.
SHOWN_LABELS = 10


@dataclass(frozen=True)
class Columns:
    """Names of the columns (CSV, TSV with a header) or of the keys (JSON lines)."""

    text: str = "text"
    pair: str = "pair"
    label: str = "label"


@dataclass(frozen=True)
class Row:
    """One labelled text, or pair of texts. line: number in the file, from 1. labels: as written."""

    line: int
    text: str | tuple[str, str]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class BadRow:
    """A line without a usable text or label, and the reason."""

    line: int
    reason: str


DEFAULT_COLUMNS = Columns()


def read_labelled(file: Path, columns: Columns = DEFAULT_COLUMNS) -> Iterator[Row | BadRow]:
    """Rows in the order of the file. Raises ServingError if the file cannot be read or lacks a column.

    A byte order mark at the start is dropped.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix.lower() in JSON_ENDINGS:
                yield from _json_rows(lines, columns)
            elif file.suffix.lower() == ".csv":
                yield from _csv_rows(lines, columns, file)
            else:
                yield from _tsv_rows(lines, columns)
    except OSError as error:
        raise ServingError(f"{file}: {error.strerror}; expected a TSV, CSV or JSON lines file") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert it first") from error


def _tsv_rows(lines, columns: Columns) -> Iterator[Row | BadRow]:
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        cells = line.rstrip("\r\n").split("\t")
        if number == 1 and {columns.text, columns.label} <= set(cells):
            header = cells
        elif header and len(cells) == len(header):
            yield _row(number, dict(zip(header, cells)), columns)
        elif header or len(cells) not in (2, 3):
            expected = len(header) if header else "2 (text, label) or 3 (text, pair, label)"
            if line.strip():
                yield BadRow(number, f"{len(cells)} columns; expected {expected}")
        else:
            names = (columns.text, columns.label) if len(cells) == 2 else (columns.text, columns.pair, columns.label)
            yield _row(number, dict(zip(names, cells)), columns)


def _csv_rows(lines, columns: Columns, file: Path) -> Iterator[Row | BadRow]:
    rows = csv.DictReader(lines, strict=True)
    missing = [name for name in (columns.text, columns.label) if name not in (rows.fieldnames or [])]
    if missing:
        raise ServingError(
            f"{file} has the columns {', '.join(rows.fieldnames or ['(none)'])}, and no {' and no '.join(missing)}; "
            "name them with TEXT_COLUMN=… LABEL_COLUMN=… PAIR_COLUMN=…"
        )
    try:
        for cells in rows:
            if None in cells or None in cells.values():
                yield BadRow(rows.line_num, f"not {len(rows.fieldnames or [])} columns as the header has")
            else:
                yield _row(rows.line_num, cells, columns)
    except csv.Error as error:
        raise ServingError(f"{file} line {rows.line_num} is not CSV: {error}") from error


def _json_rows(lines, columns: Columns) -> Iterator[Row | BadRow]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            yield BadRow(number, f"not JSON: {error}")
            continue
        yield _row(number, values, columns) if isinstance(values, dict) else BadRow(number, "not a JSON object")


def _row(number: int, values: dict, columns: Columns) -> Row | BadRow:
    text, pair, label = (values.get(name) for name in (columns.text, columns.pair, columns.label))
    if not isinstance(text, str) or not text.strip():
        return BadRow(number, f"no text in {columns.text}")
    if pair is not None and not isinstance(pair, str):
        return BadRow(number, f"{columns.pair} is {pair!r}; expected a text")
    labels = tuple(map(_name, label)) if isinstance(label, list) else None if label is None else (_name(label),)
    if labels is None or "" in labels:
        return BadRow(number, f"no label in {columns.label}")
    return Row(number, text if pair is None else (text, pair), labels)


def _name(label: object) -> str:
    """JSON knows numbers and texts; 3 and "3" mean the same label."""
    return label.strip() if isinstance(label, str) else json.dumps(label)


def class_ids_of(row: Row, labels: list[str], *, multi_label: bool) -> list[int]:
    """Class ids of a row's labels, by name, else by number. Raises ServingError for a label that the model lacks.

    A single text of a multi-label file may name several labels with `|` between them, or none ("-").
    """
    index = {label: class_id for class_id, label in enumerate(labels)}
    names = list(row.labels)
    if multi_label and len(names) == 1 and names[0] not in index:
        names = [] if names[0] == "-" else [name.strip() for name in names[0].split("|")]
    ids = [index.get(name, int(name) if name.isdecimal() else -1) for name in names]
    for name, class_id in zip(names, ids):
        if not 0 <= class_id < len(labels):
            more = f" … {len(labels)} in all" if len(labels) > SHOWN_LABELS else ""
            known = ", ".join(labels[:SHOWN_LABELS]) + more
            raise ServingError(f"line {row.line} has the label {name!r}; this model's labels are {known}")
    if not multi_label and len(ids) != 1:
        raise ServingError(f"line {row.line} has {len(ids)} labels; this model gives one label a text")
    return ids
