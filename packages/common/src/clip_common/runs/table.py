"""CSV files that grow and never misalign.

A new column widens the whole file, a line cut off by a kill is dropped, and writers take turns.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from clip_common.runs.files import write_text
from clip_common.tables import csv_text

LONGEST_LINE = 1 << 16
"""Bytes searched for the end of the last whole line."""


class MetricsCsv:
    """metrics.csv of a run: one row an event; columns grow as new names appear; cells of absent names are empty.

    One process writes it. Numbers are written so that they read back to the same float.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row."""
        self.extend([row])

    def extend(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, all or none of them."""
        _extend(self.path, [dict(row) for row in rows])

    def rows(self) -> list[dict[str, str]]:
        """Return all rows, cells as text; an empty list if nothing was written."""
        return read_rows(self.path)

    def truncate_after(self, step: int, *, phase: str | None = None) -> None:
        """Drop the rows whose `step` is greater; with `phase`, only rows of that phase."""

        def keep(row: Mapping[str, str]) -> bool:
            return (phase is not None and row.get("phase") != phase) or float(row.get("step") or 0) <= step

        rows = self.rows()
        if not all(map(keep, rows)):
            _rewrite(self.path, _header(self.path), filter(keep, rows))


def append_row(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append one row to a CSV that several processes may write (a registry), under a file lock.

    A column that the file does not have yet is added to all its rows.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        _extend(path, [row])


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV as text; an empty list if there is no file. A line cut off by a kill is dropped."""
    path = Path(path)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(io.StringIO(whole)))


def _extend(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    header = _header(path)
    new = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in header]
    if new:
        _rewrite(path, [*header, *new], [*read_rows(path), *rows])
    else:
        _append(path, "".join(_line(row.get(name) for name in header) for row in rows).encode())


def _rewrite(path: Path, header: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, _line(header) + "".join(_line(row.get(name) for name in header) for row in rows))


def _append(path: Path, lines: bytes) -> None:
    """Write after the last whole line; if that fails (a full disk), truncate the file to that line again."""
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, io.SEEK_END)
        tail = min(size, LONGEST_LINE)
        file.seek(-tail, io.SEEK_END)
        end = size - tail + file.read(tail).rfind(b"\n") + 1
        file.seek(end)
        file.truncate()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(end)
            raise


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        first = file.readline()
    return next(csv.reader([first])) if first.endswith("\n") else []


def _line(cells: Iterable[Any]) -> str:
    """Return one line; a cell's own line breaks become spaces, so that a line is always a row."""
    return csv_text([_cell(cell) for cell in cells], [])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):  # a numpy or torch scalar, without importing either
        value = value.item()
    return " ".join(str(value).splitlines())
