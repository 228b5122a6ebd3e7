"""Groups of images that must share a batch, such as pairs that differ in one detail only."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from clip_common.errors import DataError
from clip_common.tables import read_table
from clipse.data.records import ImageRecord


def read_groups(file: Path, records: Sequence[ImageRecord]) -> Tensor:
    """Return (N,) group numbers of N records; a record that the file does not name forms its own group.

    Args:
        file: CSV with the columns image and group; images are named as in the captions file.
        records: Images of any split; the file may also name images of other splits.

    Raises:
        DataError: No such file, missing columns, or a file that names none of the records.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; data.together is a CSV file (image,group) in data.root")
    group_of = {row["image"]: row["group"] for _, row in read_table(file, needed=("image", "group"), delimiter=",")}
    named = [group_of.get(record.name) for record in records]
    if not any(group is not None for group in named):
        raise DataError(f"{file} names none of the {len(records)} images, for example {records[0].name}")
    numbers: dict[object, int] = {}
    keys = [(row, None) if group is None else group for row, group in enumerate(named)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
