"""Selection of the best scores of each row of a matrix, faster than sorting or `topk` when few of many are wanted."""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

ALIGNED = 16
"""Rows of scores start at multiples of 64 bytes: a matrix product that writes others takes twice as long."""


def choose_groups(columns: int, count: int) -> int:
    """Return the number of groups of columns in which `take_best` selects fastest: `count` or more.

    The best `count` columns are in at most `count` groups, so both groups and columns in a group shall be few.
    """
    groups = -(-columns // max(1, isqrt(columns // count)))
    return -(-groups // ALIGNED) * ALIGNED


def take_best(score_TN: NDArray[np.float32], count: int, *, groups: int) -> NDArray[np.int64]:
    """Return the columns of the `count` largest scores of each row, in ascending order of column.

    Of equal scores the earlier column is taken. Groups are formed of columns that are `groups` apart. The `count`-th
    largest maximum of a group is at most the `count`-th largest score, so groups with a smaller maximum are skipped.

    Args:
        score_TN: T rows; N is a multiple of `groups`.
        count: At most `groups`. Each row has as many scores above minus infinity.
        groups: From `choose_groups`, before rows were padded with minus infinity to a multiple of it.
    """
    rows = len(score_TN)
    member_TMG = score_TN.reshape(rows, -1, groups)
    maximum_TG = member_TMG.max(axis=1)
    bound_T = _kth_largest(maximum_TG, count)
    row, group = np.nonzero(maximum_TG >= bound_T[:, None])
    member_PM = member_TMG[row, :, group]
    pair, member = np.nonzero(member_PM >= bound_T[row, None])  # a few more than `count` for each row
    row, column, score = row[pair], member * groups + group[pair], member_PM[pair, member]

    taken_T = np.bincount(row, minlength=rows)
    starts_T = taken_T.cumsum() - taken_T
    score_TC = np.full((rows, taken_T.max()), -np.inf, dtype=np.float32)
    score_TC[row, np.arange(len(row)) - starts_T[row]] = score
    best = score >= _kth_largest(score_TC, count)[row]
    row, column, score = row[best], column[best], score[best]
    if len(row) > rows * count:  # several scores share the last place of a row
        order = np.lexsort((column, -score, row))
        taken_T = np.bincount(row, minlength=rows)
        starts_T = taken_T.cumsum() - taken_T
        column = column[order[starts_T[:, None] + np.arange(count)]]
    return np.sort(column.reshape(rows, count), axis=1)


def _kth_largest(value_TN: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    kth_T: NDArray[np.float32] = np.partition(value_TN, -k, axis=1)[:, -k]
    return kth_T
