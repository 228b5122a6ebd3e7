"""Changes of a collection since it was indexed, and the files of a folder as items with stamps."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_common.errors import DataError, check_list


def scan_folder(root: Path, *, suffixes: Collection[str], what: str) -> dict[str, str]:
    """Return the stamps of all files below `root` with one of these suffixes, by path, in sorted order.

    Args:
        root: Searched with all subfolders. Paths are relative to it, with forward slashes.
        suffixes: In lower case, with the dot, such as `clip_common.images.IMAGE_SUFFIXES`.
        what: Word for such a file in messages, such as "image".

    Raises:
        DataError: There is no such folder, or it holds no such file.
    """
    check_list(suffixes, "suffixes", empty=False)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the folder of {what}s to search")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise DataError(f"{root} holds no {what} ({', '.join(sorted(suffixes))}): name a folder that does")
    return {file.relative_to(root).as_posix(): stamp_file(file) for file in files}


def stamp_file(file: Path) -> str:
    """Return a file's size in bytes and its modification time in nanoseconds, such as `1536 1718000000000000000`."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class Changes:
    """Differences between a collection and its index, as ids; `new` and `changed` in the order of the collection."""

    new: list[str]
    changed: list[str]
    gone: list[str]


def find_changes(known: Mapping[str, str], now: Mapping[str, str]) -> Changes:
    """Compare the stamps of the indexed items with those of the current items, by id."""
    return Changes(
        new=[id for id in now if id not in known],
        changed=[id for id, stamp in now.items() if id in known and known[id] != stamp],
        gone=[id for id in known if id not in now],
    )
