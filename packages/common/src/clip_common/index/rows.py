"""What an index holds in memory: changes that are not saved yet, the row of each item, and what a search reads."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

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
        edits: Number of edits that are taken in.
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
        """Take in one edit."""
        ids = edit.added.ids.decode()
        for id in (*edit.deleted, *ids):
            row = self.row_of.pop(id, None)  # popped, so that a replaced item comes last, as its new row does
            if row is not None:
                self.deleted.add(row)
        self.row_of.update(zip(ids, range(self.count, self.count + len(ids)), strict=True))
        self.count += len(ids)
        self.edits += 1


@dataclass(frozen=True)
class View:
    """What a search reads, made anew after each change.

    Attributes:
        segments: Their rows are counted through all of them.
        deleted: int64, the rows to leave out, ascending.
        lengths: Lengths of the prefixes of all rows, by the width of the prefix.
    """

    segments: tuple[Segment, ...]
    deleted: Tensor
    lengths: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.segments)) - len(self.deleted)

    @property
    def parts(self) -> list[Tensor]:
        """The vectors of each segment."""
        return [segment.vectors_SD for segment in self.segments]

    def at(self, row: int) -> tuple[Segment, int]:
        """Return the segment of a row, and the row's place in it."""
        starts = [0, *accumulate(map(len, self.segments))]
        place = bisect_right(starts, row) - 1
        return self.segments[place], row - starts[place]


def collect_deleted(segments: Sequence[Segment]) -> Tensor:
    """Return the rows that these segments delete, ascending."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *(segment.deleted for segment in segments)]).unique()


def merge_edits(edits: Sequence[Edit], rows: Rows, *, saved_rows: int) -> Edit:
    """Return one edit that does what these do; items that were deleted again are left out.

    Args:
        edits: One or more.
        rows: With all of them taken in.
        saved_rows: Number of rows before the first of them.
    """
    kept = [row - saved_rows for row in rows.row_of.values() if row >= saved_rows]
    added = select_rows([edit.added for edit in edits], kept, deleted=torch.empty(0, dtype=torch.int64))
    return Edit(tuple(dict.fromkeys(id for edit in edits for id in edit.deleted)), added)
