"""A batch job goes on past what it cannot read and tells of it at the end: one way for every command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from clip_common.errors import DataError
from clip_common.page import printable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is left of a picture that cannot be read.

    Attributes:
        file: The picture, as it may be shown.
        problem: What is wrong with it or its mask, in one line that names the file at fault.
    """

    file: str
    problem: str


def attempt(read: Callable[[T], R], item: T, *, file: Path) -> R | Unreadable:
    """`read(item)`, or, where that raises DataError, what is wrong with `file`."""
    try:
        return read(item)
    except DataError as error:
        return Unreadable(printable(file), printable(str(error)))


def all_unreadable(failures: Mapping[str, str]) -> DataError:
    """The error where nothing else is left of a job.

    Args:
        failures: File → what is wrong with it, of all files.
    """
    return DataError(f"none of {len(failures)} images could be read, first {next(iter(failures.values()))}")
