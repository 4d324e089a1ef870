"""The one error that a command line turns into one line and an exit code."""

from __future__ import annotations


class ServingError(Exception):
    """Something the user can act on: what was found, what was expected, what to do next."""
