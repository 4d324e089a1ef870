"""Read a user's file of texts, one a line, by one rule wherever a command takes such a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError


def read_lines(variable: str, file: str | Path) -> Iterator[str]:
    """Lines of a UTF-8 file, or of standard input for "-", as they come. LF or CR LF ends a line.

    Nothing else does: a lone CR or U+2028 is text, at which `str.splitlines` would cut it. variable: which named the
    file, for the error.
    """
    try:
        source = sys.stdin.fileno() if file == "-" else file
        with open(source, encoding="utf-8", newline="\n", closefd=file != "-") as lines:
            yield from (line.removesuffix("\n").removesuffix("\r") for line in lines)
    except OSError as error:
        raise ServingError(f"{variable}={file}: {error.strerror}; expected a text file, one text a line") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"{variable}={file} is not UTF-8 (byte {error.start}); convert it first") from error
