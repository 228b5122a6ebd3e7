"""Errors that users can correct, in one line each."""

import os
import re
from collections.abc import Iterable, Sized
from importlib.util import find_spec
from pathlib import Path


class DataError(ValueError):
    """A data set that cannot be used. One line: what was found, what was expected, what to do."""


class ConfigError(ValueError):
    """A configuration that cannot be used. One line: which key, what was given, what was expected."""


def printable(path: str | Path) -> str:
    """Return a path or text as valid UTF-8, with a replacement character for what is not: a byte, half an emoji."""
    # halves of surrogate pairs, which JSON can hold; those from U+DC80 to U+DCFF are bytes of a path
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", os.fspath(path))
    return os.fsencode(text).decode("utf-8", "replace")


def check_list(values: object, called: str, *, empty: bool = True) -> None:
    """Raise ValueError if one text, path or picture is given for a list; the characters of a text are no items.

    Args:
        values: Given for a list.
        called: Name of the argument, for the message.
        empty: Whether a list without items is allowed.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{called} is a single {type(values).__name__}: expected a list; give [{called}]")
    if not empty and isinstance(values, Sized) and not len(values):
        raise ValueError(f"{called} is empty: give at least one")


def check_extra(extra: str, *modules: str, purpose: str) -> None:
    """Raise ValueError if a module of an optional extra is not installed; call before slow work.

    Args:
        extra: As pip names it, such as `aaclip[serve]`.
        modules: Top-level modules that the extra brings.
        purpose: What needs them, for the message.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ValueError(f'{purpose} needs {", ".join(missing)}: pip install "{extra}"')
