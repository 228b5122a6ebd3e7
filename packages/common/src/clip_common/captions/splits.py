"""Splits that a set states: in its rows, in Flickr8k's lists of images, or in the names of files and folders."""

from collections.abc import Iterable
from pathlib import Path

from clip_common.errors import DataError
from clip_common.tables import read_lines

SPLITS = ("train", "val", "test")

_NAMES = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of splits in files → `train`, `val` or `test`."""

_LISTS = {"train": "trainImages.txt", "val": "devImages.txt", "test": "testImages.txt"}
"""Split → how the name of its list ends."""


def parse_split(name: str | None, *, at: str) -> str | None:
    """Return `train`, `val` or `test` for a name of a split in a file; None if it states none.

    Args:
        name: Such as `restval` or `dev`; letter case does not count.
        at: Place in the file, for the message.

    Raises:
        DataError: An unknown name.
    """
    if name is None or not name.strip():
        return None
    known = _NAMES.get(name.strip().lower())
    if known is None:
        raise DataError(f"{at}: unknown split {name!r}; known: {', '.join(_NAMES)}")
    return known


def find_split(parts: Iterable[str]) -> str | None:
    """Return the split of the first file or folder name that begins with train, val, dev or test; None without one."""
    for part in parts:
        for prefix, split in (("train", "train"), ("val", "val"), ("dev", "val"), ("test", "test")):
            if part.lower().startswith(prefix):
                return split
    return None


def read_split_lists(folder: Path) -> dict[str, str]:
    """Read image name -> split from `Flickr_8k.{train,dev,test}Images.txt` (any prefix); empty without such files.

    Raises:
        DataError: A list cannot be read, or an image is listed twice.
    """
    owner: dict[str, str] = {}
    twice: dict[str, str] = {}
    for split, ending in _LISTS.items():
        for file in sorted(folder.glob(f"*{ending}")):
            for _, line in read_lines(file):
                name = line.strip()
                if name in owner:
                    twice[name] = f"{owner[name]} and {split}"
                else:
                    owner[name] = split
    if twice:
        name, where = next(iter(twice.items()))
        raise DataError(
            f"{folder}: {len(twice)} image(s) are listed twice in the split lists, first {name} in {where}: "
            "keep one entry of each"
        )
    return owner
