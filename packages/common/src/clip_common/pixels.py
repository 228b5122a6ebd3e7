"""Caches of decoded pixels: a folder that is complete or absent, and named by a key of everything it was made from."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common import images
from clip_common.errors import DataError
from clip_common.runs.files import write_folder_atomically


def key_of(parts: Iterable[object]) -> str:
    """Return the name of a cache folder: another one when the text of any part changes.

    `images.VERSION` is always one of the parts, so that pixels decoded by an older reader are never served.
    """
    digest = hashlib.sha256()
    for part in (images.VERSION, *parts):
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:24]


def state_of(path: Path) -> str:
    """Return a file's path, name, size and time, for a key; of a folder, those of all files in it.

    Raises:
        OSError: There is no such file or folder.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
    return f"{path.resolve()}|{states}"


@contextmanager
def cache_folder(folder: Path, *, needed: int, what: str) -> Iterator[Path]:
    """Fill a folder as `write_folder_atomically` does; of two processes that fill it, the first to finish wins.

    Args:
        folder: A folder that does not exist yet.
        needed: Bytes that it will take.
        what: Its name in the message.

    Raises:
        DataError: The disk has less room than needed.
        OSError: The disk filled up meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_space(folder.parent, needed=needed, what=what)
    try:
        with write_folder_atomically(folder) as draft:
            yield draft
    except OSError:
        if not folder.exists():  # otherwise the other process has made it from the same files
            raise


def check_space(folder: Path, *, needed: int, what: str) -> None:
    """Raise DataError if the disk of a folder has less room than `what` needs, in bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: {what} needs about {needed / 2**20:,.0f} MiB and the disk has "
            f"{free / 2**20:,.0f} MiB free: set data.cache=false, or data.cache_dir to another disk"
        )


class MappedPixels:
    """A memory-mapped file of bytes. Pickling keeps only its path, so worker processes map it and copy nothing."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.bytes = np.memmap(file, dtype=np.uint8, mode="r")
        self.nbytes = self.bytes.nbytes

    def __reduce__(self) -> tuple[type["MappedPixels"], tuple[Path]]:
        return MappedPixels, (self.file,)

    def __getitem__(self, place: slice) -> NDArray[np.uint8]:
        """Return a copy of some of the bytes."""
        return np.array(self.bytes[place])
