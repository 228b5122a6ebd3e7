"""Cut a set into two lists in the official format: the few-shot training images, and the rest for testing."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aaclip.data.records import Dataset, Record
from aaclip.data.selection import check_masks, check_no_overlap, few_shot, hash_file
from clip_common.errors import DataError
from clip_common.runs.files import write_new_folder, write_text
from clip_common.tables import json_lines_text

TRAIN, TEST = "train.jsonl", "test.jsonl"


def split_few_shot(dataset: Dataset, *, shot: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Return the records that `few_shot` draws from all of a set, and all the others.

    Raises:
        DataError: Too few records of a class, a drawn record without its mask, nothing left to test on, or a picture
            that would be in both lists under two names.
    """
    train = few_shot(dataset.records, shot=shot, seed=seed)
    check_masks(train)
    drawn = set(train)
    test = [record for record in dataset.records if record not in drawn]
    if not test:
        raise DataError(
            f"{dataset.root}: shot {shot} takes all {len(train)} images and leaves none to test on: lower it"
        )
    check_no_overlap(train, test)
    return train, test


def write_split(train: Sequence[Record], test: Sequence[Record], folder: Path) -> list[Path]:
    """Write train.jsonl and test.jsonl, both or neither; `read_dataset(folder)` returns the same records.

    A line has the keys of the released code (image_path, label, class_name, mask_path; paths from `folder`), and the
    sha256 of the image.

    Raises:
        ValueError: The folder exists, or an image cannot be read.
    """
    with write_new_folder(folder) as draft:
        for name, records in ((TRAIN, train), (TEST, test)):
            write_text(draft / name, json_lines_text(_line(record, folder) for record in records))
    return [folder / TRAIN, folder / TEST]


def _line(record: Record, folder: Path) -> dict[str, Any]:
    return {
        "image_path": _from(folder, record.image),
        "label": int(record.anomalous),
        "class_name": record.class_name,
        "mask_path": "" if record.mask is None else _from(folder, record.mask),
        "sha256": hash_file(record.image),
    }


def _from(folder: Path, file: Path) -> str:
    # resolved folders, because `..` after a link leads elsewhere; the file keeps its own name, even if it is a link
    return Path(os.path.relpath(file.parent.resolve() / file.name, folder.resolve())).as_posix()
