"""Which images must meet in a batch: pictures that differ in one thing alone, so that a loss sees the difference."""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip_common.errors import DataError
from clipse.data.records import ImageRecord


def read_groups(file: Path, records: Sequence[ImageRecord]) -> Tensor:
    """(N,) group numbers of N records; a record that the file does not name is a group of its own.

    Args:
        file: CSV with the columns image and group; image as in the captions file.
        records: Any split; the file may name images of other splits.

    Raises:
        DataError: No such file, other columns, or a file that names none of the records.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; data.together is a CSV file (image,group) in data.root")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"image", "group"} <= set(reader.fieldnames or ()):
            raise DataError(
                f"{file}: expected the columns image and group, got {', '.join(reader.fieldnames or ['none'])}"
            )
        group_of = {row["image"]: row["group"] for row in reader}
    named = [group_of.get(record.name) for record in records]
    if not any(group is not None for group in named):
        raise DataError(f"{file} names none of the {len(records)} images, for example {records[0].name}")
    numbers: dict[object, int] = {}
    keys = [(row, None) if group is None else group for row, group in enumerate(named)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
