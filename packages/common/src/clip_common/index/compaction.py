"""When segments are merged: many small ones into a larger one, and all of them once many rows are deleted."""

from collections.abc import Sequence

from clip_common.index.rows import Rows, collect_deleted
from clip_common.index.segments import Segment, select_rows

SEGMENTS = 16
"""With more segments than this, the small ones are merged."""
DELETED_SHARE = 0.25
"""Everything is written anew once more than this share of the rows is deleted."""


def compact(segments: Sequence[Segment], rows: Rows) -> tuple[int, Segment]:
    """Return the place of the first segment that is replaced, and the segment that replaces it and all after it.

    Merging holds the merged rows in memory.

    Args:
        segments: All of an index, the last one not yet written.
        rows: Their items.
    """
    first = 0
    if len(rows.deleted) <= DELETED_SHARE * rows.count:
        first = choose_merge([len(segment) + 1 for segment in segments], limit=SEGMENTS)
    merged = segments[first:]
    if len(merged) == 1:
        return first, merged[0]
    before = sum(map(len, segments[:first]))
    alive = [row - before for row in rows.row_of.values() if row >= before]
    deleted = collect_deleted(merged)
    return first, select_rows(merged, alive, deleted=deleted[deleted < before])


def choose_merge(sizes: Sequence[int], *, limit: int) -> int:
    """Return the segment from which on all become one, so that few are left and large ones are seldom written again.

    No segment before it is smaller than all after it together: a row is then written again about log2(rows) times in
    all, and about `limit` + log2(rows) segments are left.

    Args:
        sizes: What each segment costs to write.
        limit: Number of segments that need no merging.

    Returns:
        Its place; that of the last one if nothing is to be merged.
    """
    last = len(sizes) - 1
    if len(sizes) <= limit:
        return last
    return next((place for place in range(last) if sizes[place] < sum(sizes[place + 1 :])), last)
