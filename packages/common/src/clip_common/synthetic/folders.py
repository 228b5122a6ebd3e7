"""How every writer of the world puts a set on disk: whole or not at all."""

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)`."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft beside `folder` that takes its name when the body ends well, and vanishes when it does not.

    Raises:
        ValueError: The folder exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: name a folder that does not, or remove it")
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


def write_table(file: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A CSV file with a header."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A file of one JSON object a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The inverse of `write_lines`."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def require_counts(**counts: int) -> None:
    """Raise ValueError for a negative number, or nothing at all, of what is to be drawn."""
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        raise ValueError(f"nothing to draw: {', '.join(f'{name}={count}' for name, count in counts.items())}")
