"""NumPy's files, opened by one thread at a time.

NumPy parses an array's header as Python source, and in CPython before 3.11.8 and 3.12.2 two threads that parse at once
can end in `SystemError: AST constructor recursion depth mismatch`.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import numpy as np

NUMPY_ERRORS = (OSError, ValueError, EOFError, SyntaxError, KeyError, zipfile.BadZipFile)
"""What reading a damaged or unexpected file raises."""
_PARSING = RLock()


@contextmanager
def open_numpy(file: Path, *, mmap_mode: Literal["r"] | None = None) -> Iterator[Any]:
    """Open an .npy (yields its array) or an .npz (yields its arrays by name) while other threads wait.

    Raises:
        OSError, ValueError, …: One of NUMPY_ERRORS, when the file is damaged or holds Python objects.
    """
    with _PARSING:
        opened = np.load(file, allow_pickle=False, mmap_mode=mmap_mode)
        try:
            yield opened
        finally:
            if isinstance(opened, np.lib.npyio.NpzFile):
                opened.close()
