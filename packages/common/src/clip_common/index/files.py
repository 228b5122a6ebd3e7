"""Changes of a collection since it was indexed, and the files of a folder as items: path and stamp."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_common.errors import DataError


def scan_folder(root: Path, *, suffixes: Collection[str], what: str) -> dict[str, str]:
    """Return the stamp of every file below `root` with one of these suffixes, by its path there, in sorted order.

    Args:
        root: Searched to its full depth. Paths are relative to it, with forward slashes.
        suffixes: In lower case, with the dot, such as `clip_common.images.IMAGE_SUFFIXES`.
        what: What such a file is called in messages, such as "image".

    Raises:
        DataError: No such folder, or no such file in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder of {what}s to search")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise DataError(f"{root} holds no {what} ({', '.join(sorted(suffixes))})")
    return {file.relative_to(root).as_posix(): stamp_file(file) for file in files}


def stamp_file(file: Path) -> str:
    """Return a file's size in bytes and the time of its last change in nanoseconds, as `1536 1718000000000000000`."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class Changes:
    """How a collection differs from its index, as ids; `new` and `changed` in the order of the collection."""

    new: list[str]
    changed: list[str]
    gone: list[str]


def find_changes(known: Mapping[str, str], now: Mapping[str, str]) -> Changes:
    """Compare the stamps of indexed items with those of the collection as it is now, by id."""
    return Changes(
        new=[id for id in now if id not in known],
        changed=[id for id, stamp in now.items() if id in known and known[id] != stamp],
        gone=[id for id in known if id not in now],
    )
