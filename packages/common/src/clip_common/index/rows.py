"""In-memory state of an index: unsaved changes, the row of each item, and the data of a search."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clip_common.index.first import First, FirstPass
from clip_common.index.segments import Segment, select_rows


@dataclass(frozen=True)
class Edit:
    """One change: delete these ids, then add these items in place of any with the same ids."""

    deleted: tuple[str, ...]
    added: Segment


@dataclass
class Rows:
    """The row of every item, counted through the saved segments and then through the edits.

    Attributes:
        row_of: Rows by id, in ascending order.
        deleted: Rows whose items were deleted or replaced.
        count: Number of rows, deleted ones included.
        edits: Number of edits that were applied.
    """

    row_of: dict[str, int]
    deleted: set[int]
    count: int
    edits: int = 0

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "Rows":
        """Locate the items of saved segments."""
        ids = [id for segment in segments for id in segment.ids.decode()]
        deleted = set(collect_deleted(segments).tolist())
        return cls({id: row for row, id in enumerate(ids) if row not in deleted}, deleted, len(ids))

    def apply(self, edit: Edit) -> None:
        """Apply one edit."""
        ids = edit.added.ids.decode()
        for id in (*edit.deleted, *ids):
            row = self.row_of.pop(id, None)  # removed, so that a replaced item is last in the dict, like its new row
            if row is not None:
                self.deleted.add(row)
        self.row_of.update(zip(ids, range(self.count, self.count + len(ids)), strict=True))
        self.count += len(ids)
        self.edits += 1


@dataclass(frozen=True)
class View:
    """The data of a search, rebuilt after each change.

    Attributes:
        segments: All segments; rows are counted through all of them.
        deleted: int64, the rows to skip, ascending.
        lengths: Lengths of the prefixes of all rows, by the width of the prefix.
        passes: First passes over all rows, by the kind of their codes and the width that they compare.
    """

    segments: tuple[Segment, ...]
    deleted: Tensor
    lengths: dict[int, Tensor] = field(default_factory=dict)
    passes: dict[tuple[First, int], FirstPass] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count - len(self.deleted)

    @cached_property
    def count(self) -> int:
        """Number of rows, deleted ones included."""
        return sum(map(len, self.segments))

    @cached_property
    def starts(self) -> list[int]:
        """The first row of each segment."""
        return [0, *accumulate(map(len, self.segments))][:-1]

    @property
    def parts(self) -> list[Tensor]:
        """The vectors of each segment."""
        return [segment.vectors_SD for segment in self.segments]

    def at(self, row: int) -> tuple[Segment, int]:
        """Return the segment of a row, and the row's number in it."""
        place = bisect_right(self.starts, row) - 1
        return self.segments[place], row - self.starts[place]

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """Return a copy of the vectors of some rows, (len(rows), D)."""
        places = [self.at(row) for row in rows]
        return torch.stack([segment.vectors_SD[place] for segment, place in places]) if rows else torch.empty(0, 0)

    def read_texts(self, rows: Sequence[int], *columns: Literal["ids", "stamps", "payloads"]) -> list[list[str]]:
        """Return texts of some rows, one list for each column."""
        row_K = np.array(rows, dtype=np.int64)
        place_K = np.searchsorted(self.starts, row_K, side="right") - 1
        read = [[""] * len(rows) for _ in columns]
        for place in np.unique(place_K).tolist():
            inside = (place_K == place).nonzero()[0]
            for column, texts in zip(columns, read, strict=True):
                picked = getattr(self.segments[place], column).pick(row_K[inside] - self.starts[place])
                for at, text in zip(inside.tolist(), picked, strict=True):
                    texts[at] = text
        return read


def collect_deleted(segments: Sequence[Segment]) -> Tensor:
    """Return the rows that these segments delete, in ascending order."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *(segment.deleted for segment in segments)]).unique()


def merge_edits(edits: Sequence[Edit], rows: Rows, *, saved_rows: int) -> Edit:
    """Merge edits into one; items that a later edit deletes are dropped.

    Args:
        edits: One or more.
        rows: Rows after all of the edits.
        saved_rows: Number of rows before the first edit.
    """
    kept = [row - saved_rows for row in rows.row_of.values() if row >= saved_rows]
    added = select_rows([edit.added for edit in edits], kept, deleted=torch.empty(0, dtype=torch.int64))
    return Edit(tuple(dict.fromkeys(id for edit in edits for id in edit.deleted)), added)
