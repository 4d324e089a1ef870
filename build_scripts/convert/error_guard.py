"""One guard around all reading of a checkpoint: no content of a directory ends in a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError


@contextlib.contextmanager
def refusing(path: Path, step: str) -> Iterator[None]:
    """Turn any error of `step` into a ServingError: on unexpected files, libraries raise errors of any type.

    ServingErrors pass, and so do an interrupt and an exit, which say nothing about the checkpoint.
    """
    try:
        yield
    except (ServingError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic inside tokenizers is no Exception
        raise ServingError(
            f"{path} cannot be served: {step} failed ({type(error).__name__}: {first_line(error)}); "
            "expected what save_pretrained of transformers writes for a text classifier"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the second if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
