"""Read a user's file of texts, one per line, by the same rule for every command."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError


def read_lines(variable: str, file: str | Path) -> Iterator[str]:
    """Lines of a UTF-8 file, or of standard input for "-", as they arrive. LF or CR LF ends a line.

    A lone CR and U+2028 are text; `str.splitlines` would cut there. A byte order mark at the start is not text.
    variable: the option that named the file, for the error.
    """
    try:
        with open(sys.stdin.fileno() if file == "-" else file, "rb", closefd=file != "-") as lines:
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield content.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except OSError as error:
        raise ServingError(f"{variable}={file}: {error.strerror}; expected a text file, one text per line") from error
    except UnicodeDecodeError as error:
        raise ServingError(
            f"{variable}={file}: line {number} is not UTF-8 (at byte {error.start + 1}); convert the file first"
        ) from error
