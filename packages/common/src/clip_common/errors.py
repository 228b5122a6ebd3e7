"""Errors that users can correct, in one line each."""

import os
from pathlib import Path


class DataError(ValueError):
    """A data set that cannot be used. One line: what was found, what was expected, what to do."""


class ConfigError(ValueError):
    """A configuration that cannot be used. One line: which key, what was given, what was expected."""


def printable(path: str | Path) -> str:
    """Return a path or text as valid UTF-8, with a replacement character for each byte that is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")
