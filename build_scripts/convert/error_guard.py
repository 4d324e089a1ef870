"""Nothing that a checkpoint directory can hold ends in a traceback: one guard around everything that reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from build_scripts.core.errors import ServingError


@contextlib.contextmanager
def refusing(path: Path, step: str) -> Iterator[None]:
    """Turn whatever `step` raises into a ServingError: libraries meet files of every kind, and raise as many.

    What has a message of its own passes, and so does what says nothing of the checkpoint: a key pressed, an exit.
    """
    try:
        yield
    except (ServingError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # not only Exception: a panic inside tokenizers is none
        raise ServingError(
            f"{path} cannot be served: {step} failed ({type(error).__name__}: {first_line(error)}); "
            "expected what save_pretrained of transformers writes for a text classifier"
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first, and where that only announces the reason, the next one too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
