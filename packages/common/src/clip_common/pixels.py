"""Decoded pixels kept on disk: a folder that is there whole or not at all, named by what it was made from."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from clip_common.runs.files import whole_folder


def key_of(parts: Iterable[object]) -> str:
    """A name for a folder: another one when the text of any part changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:24]


def state_of(path: Path) -> str:
    """A file's name, size and time, so that a changed one makes another key; of a folder, those of all files in it.

    Raises:
        OSError: It is not there.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]]
    return f"{path.resolve()}|{states}"


@contextmanager
def cache_folder(folder: Path, *, needed: int, what: str) -> Iterator[Path]:
    """`whole_folder`, where another process may make the same one meanwhile: whichever is ready first stays.

    Args:
        folder: A folder that does not exist yet.
        needed: Bytes that it will take.
        what: Its name in the message.

    Raises:
        DataError: The disk has less room than needed.
        OSError: It filled up meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise DataError(
            f"{folder.parent}: {what} needs about {needed / 2**20:,.0f} MiB and the disk has "
            f"{free / 2**20:,.0f} MiB free: set data.cache=false, or data.cache_dir to another disk"
        )
    try:
        with whole_folder(folder) as draft:
            yield draft
    except OSError:
        if not folder.exists():  # else the other has made it, of the same bytes
            raise


class MappedPixels:
    """A file of bytes, mapped; a worker process maps it again, where pickled pixels would be copied."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.bytes = np.memmap(file, dtype=np.uint8, mode="r")
        self.nbytes = self.bytes.nbytes

    def __reduce__(self) -> tuple[type["MappedPixels"], tuple[Path]]:
        return MappedPixels, (self.file,)

    def __getitem__(self, place: slice) -> NDArray[np.uint8]:
        """A copy of some of them."""
        return np.array(self.bytes[place])
