"""Files and folders that are written whole or not at all."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends without an error it is flushed to disk and renamed.

    An error (a full disk included) removes the temporary file and leaves the former one as it was. Any number of
    threads and processes may write the same path: the last one to finish wins, and a reader sees one of them whole.
    A killed writer leaves its temporary file, a hidden one that ends in `.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """Yield a draft beside `folder`; when the block ends without an error it is renamed, otherwise it is removed.

    Raises:
        OSError: Such as a full disk, or a folder of that name that is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(folder)
    except OSError as error:
        error.filename = error.filename or str(folder.parent)  # a full disk does not say which it is
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def write_new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all, under a name that is free.

    Raises:
        ValueError: The folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name a folder that does not, or remove it")
    with write_folder_atomically(folder) as draft:
        yield draft


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically. Paths become strings; numpy and torch scalars and arrays numbers."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote; an empty dict if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON value")
