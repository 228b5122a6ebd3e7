"""Files that tests write, and a disk that fills up."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(file: Path, text: str) -> Path:
    """Write text as UTF-8, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limit the size of files in bytes: the kernel fails a write beyond it halfway, like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
