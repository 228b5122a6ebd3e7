"""What the writers of the world share: tables, lines, counts."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


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
