"""The error that the command line prints as one line before it exits with a nonzero code."""

from __future__ import annotations


class ServingError(Exception):
    """A fault that the user can mend. Its message: what was found, what was expected, the next step."""
