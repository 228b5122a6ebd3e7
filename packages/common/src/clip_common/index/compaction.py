"""Merging of segments: many small ones into a larger one, and all of them once many rows are deleted."""

from collections.abc import Sequence

from clip_common.index.rows import Rows, collect_deleted
from clip_common.index.segments import Segment, select_rows

SEGMENTS = 16
"""If there are more segments than this, the small ones are merged."""
DELETED_SHARE = 0.25
"""If more than this share of the rows is deleted, all segments are merged into one."""


def compact(segments: Sequence[Segment], rows: Rows) -> tuple[int, Segment]:
    """Merge the last segments of an index if there are too many, or all if many rows are deleted.

    The merged rows are held in memory.

    Args:
        segments: All segments of the index; the last one is not yet written.
        rows: The rows of the items in them.

    Returns:
        The number of segments to keep, and one segment that replaces all others.
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
    """Return the number of the first segment to merge with all after it; the last segment if there is nothing to merge.

    The choice keeps segments few and seldom rewrites large ones: afterwards no segment is smaller than all later ones
    together. Over time each row is rewritten about log2(rows) times, and about `limit` + log2(rows) segments remain.

    Args:
        sizes: The cost of writing each segment.
        limit: Number of segments that need no merging.
    """
    last = len(sizes) - 1
    if len(sizes) <= limit:
        return last
    return next((place for place in range(last) if sizes[place] < sum(sizes[place + 1 :])), last)
