"""Splits that a set states: in its rows, in Flickr8k's lists of images, or in the names of files and folders."""

import re
from collections.abc import Iterable
from pathlib import Path

from clip_common.captions.problems import Place, ReadLog
from clip_common.errors import DataError, check_list
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

_SPLIT_WORD = re.compile(r"(?<![a-z])(train(?:ing)?|val|valid|validation|dev|test(?:ing)?)(?![a-z])")

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
    check_list(parts, "parts")
    for part in parts:
        for prefix, split in (("train", "train"), ("val", "val"), ("dev", "val"), ("test", "test")):
            if part.lower().startswith(prefix):
                return split
    return None


def find_file_split(file: Path) -> str | None:
    """Return the split that the name of a caption file states, such as captions_val2017.json; None without one.

    The metadata of an imagefolder is in the folder of its split, whose name counts then.
    """
    name = file.parent.name if file.stem.lower() == "metadata" else file.stem
    found = {_NAMES[word.removesuffix("ing")] for word in _SPLIT_WORD.findall(name.lower())}
    return found.pop() if len(found) == 1 else None


def read_split_lists(folder: Path, log: ReadLog) -> dict[str, str]:
    """Read image name → split from `Flickr_8k.{train,dev,test}Images.txt` (any prefix); empty without such files.

    An image that is listed twice is a problem, and has no split.
    """
    owner: dict[str, tuple[str, Place]] = {}
    twice: set[str] = set()
    for split, ending in _LISTS.items():
        for file in sorted(folder.glob(f"*{ending}")):
            try:
                lines = list(read_lines(file))
            except DataError as error:
                log.add("file", Place(file), str(error).removeprefix(f"{file}: "))
                continue
            for number, line in lines:
                name, place = line.strip(), Place(file, number)
                if name in owner:
                    first, where = owner[name]
                    log.add("split", place, f"{name} in {first} and {split}, listed at {where} too: keep one")
                    twice.add(name)
                else:
                    owner[name] = split, place
    return {name: split for name, (split, _) in owner.items() if name not in twice}
