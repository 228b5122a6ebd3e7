"""The common form of every format: one record for each picture, and a set of records."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled picture.

    Attributes:
        image: The image file.
        class_name: The class's folder name, such as `metal_nut`.
        split: The set's own split.
        anomalous: True if it shows a defect, False if not.
        mask: File of the defect's mask (white on the defect); None for a normal image, for a set without masks, and for
            a missing mask (`Dataset.problems` names it).
        defect: The set's name for the defect, such as `scratch`; "good" for a normal image.
    """

    image: Path
    class_name: str
    split: Literal["train", "test"]
    anomalous: bool
    mask: Path | None = None
    defect: str = "good"


@dataclass(frozen=True)
class Dataset:
    """A set of labelled pictures on disk.

    Attributes:
        root: Its folder.
        format: The format's name, such as `mvtec`.
        records: Its pictures, in an order that depends on their names alone.
        problems: One line for each missing mask.
    """

    root: Path
    format: str
    records: list[Record]
    problems: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted({record.class_name for record in self.records})

    def of(self, *, classes: Iterable[str] | None = None, split: str | None = None) -> list[Record]:
        """Return the records of some classes (default: all) and of one split (default: both)."""
        wanted = None if classes is None else set(classes)
        return [
            record
            for record in self.records
            if (wanted is None or record.class_name in wanted) and (split is None or record.split == split)
        ]


def group_by_class(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each class, in their order."""
    of_class: dict[str, list[Record]] = {}
    for record in records:
        of_class.setdefault(record.class_name, []).append(record)
    return of_class
