"""Problems of captions as values: a kind, a place and one line of text; readers collect them and go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from clip_common.errors import DataError, printable

Kind = Literal["file", "row", "split", "caption", "image", "sample"]
"""`file`: a file, or the rest of one. `row`: a row, or an entry of JSON. `sample`: a sample of a shard or a folder."""


class Place(NamedTuple):
    """Place in a file: a line, a row of a binary table, counted from 1, or the whole file (`number` is None)."""

    file: Path
    number: int | None = None
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.file}" if self.number is None else f"{self.file}, {self.unit} {self.number}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a set that cannot be used; `str` gives its line: the place, and what to do about it."""

    kind: Kind
    place: Place
    text: str

    @property
    def file(self) -> Path:
        """The file that has to be corrected."""
        return self.place.file

    @property
    def line(self) -> int | None:
        """Line in the file, or row of a binary table, from 1; None for the whole file."""
        return self.place.number

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.text}")


@dataclass
class ReadLog:
    """What a reader is told, and what it found.

    Attributes:
        columns: Role (`image`, `caption`, `split`) → the column or key that holds it, where the user named one.
        problems: What cannot be used, in the order in which it was found.
        notes: What was chosen: columns, and the folder of the images; one line each.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: Kind, place: Place, text: str) -> None:
        """Append a problem."""
        self.problems.append(Problem(kind, place, text))


def check_none(problems: Sequence[Problem], *, advice: str) -> None:
    """Raise DataError if there are problems: one line with the first three, the number of others, and the advice."""
    if not problems:
        return
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    raise DataError(f"{'; '.join(map(str, problems[:3]))}{more}: {advice}")
