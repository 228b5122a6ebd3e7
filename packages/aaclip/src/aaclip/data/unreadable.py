"""Batch jobs continue past files that they cannot read, and report them at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch.utils.data import Dataset

from aaclip.data.dataset import AnomalyDataset, Sample
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


class Attempts(Dataset[Sample | Unreadable]):
    """A dataset that returns `Unreadable` for a sample that cannot be read, instead of raising."""

    def __init__(self, dataset: AnomalyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        return attempt(self.dataset.__getitem__, index, file=self.dataset.records[index].image)


def all_unreadable(failures: Mapping[str, str]) -> DataError:
    """Return the error of a job whose files could all not be read.

    Args:
        failures: File → what is wrong with it.
    """
    return DataError(f"none of {len(failures)} images could be read, first {next(iter(failures.values()))}")
