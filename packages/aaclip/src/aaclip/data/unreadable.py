"""Batch jobs continue past files that they cannot read, and report them at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clip_common.errors import DataError, printable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A picture that cannot be read.

    Attributes:
        file: The picture, as it may be printed.
        problem: What is wrong with it or its mask, in one line that names the file at fault.
    """

    file: str
    problem: str


def attempt(read: Callable[[T], R], item: T, *, file: Path) -> R | Unreadable:
    """Return `read(item)`, or `Unreadable` if it raises DataError."""
    try:
        return read(item)
    except DataError as error:
        return Unreadable(printable(file), printable(str(error)))


def all_unreadable(failures: Mapping[str, str]) -> DataError:
    """Return the error of a job whose files could all not be read.

    Args:
        failures: File → what is wrong with it.
    """
    return DataError(f"none of {len(failures)} images could be read, first {next(iter(failures.values()))}")
