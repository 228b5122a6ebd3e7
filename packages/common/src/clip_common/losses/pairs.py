"""The role of each pair (i, j) in a loss: a positive, a weighted negative, or neither; computed tile by tile.

Legend: B rows, C columns, I rows and J columns of one tile.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_common.losses.reductions import Sides

TileFunction = Callable[[slice, slice], Tensor]
MaskFunction = Callable[[slice, slice], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pairs:
    """The rules for all pairs of B rows and C columns.

    Attributes:
        offset: Column `offset + i` is row i's positive; None: only `positive` ids define positives.
        exclude: (B,) and (C,) ids, or (B, S) and (C, S); a pair with an equal id is not a negative.
        positive: (B,) and (C,) ids; a pair with equal ids is a positive.
        log_weight: (rows, columns) → (I, J) log-weights of the negatives, without gradient.
        hide: (rows, columns) → two (I, J) masks: pairs dropped from the row's negatives, and from the column's.
    """

    offset: int | None = 0
    exclude: Sides | None = None
    positive: Sides | None = None
    log_weight: TileFunction | None = None
    hide: MaskFunction | None = None

    @property
    def plain(self) -> bool:
        """Whether each row has one positive and every other pair is a negative of weight 1; then no masks are built."""
        return all(rule is None for rule in (self.exclude, self.positive, self.log_weight, self.hide))


class Tile:
    """The rules applied to one tile: some rows and some columns.

    Attributes:
        paired_rows, paired_columns: Rows and columns whose paired entry is in this tile.
        positive_IJ: Mask of positives; None for plain pairs.
        hidden: Masks (I, J) of pairs that are not negatives of the row, and of the column; None for plain pairs.
        log_weight_IJ: Log-weights; None without weights.
    """

    positive_IJ: Tensor | None = None
    hidden: tuple[Tensor, Tensor] | None = None
    log_weight_IJ: Tensor | None = None

    def __init__(self, pairs: Pairs, rows: slice, columns: slice, *, like: Tensor) -> None:
        self.rows, self.columns, self.offset, self._like = rows, columns, pairs.offset, like
        self.shape = (rows.stop - rows.start, columns.stop - columns.start)
        self.paired_rows = self.paired_columns = slice(0, 0)
        if pairs.offset is not None:
            start, stop = max(rows.start, columns.start - pairs.offset), min(rows.stop, columns.stop - pairs.offset)
            self.paired_rows = slice(start, max(start, stop))
            self.paired_columns = slice(start + pairs.offset, self.paired_rows.stop + pairs.offset)
        if pairs.plain:
            return
        self.positive_IJ = self._equal(pairs.positive)
        if pairs.offset is not None:
            self.paired(self.positive_IJ).fill_(True)
        hidden_IJ = self.positive_IJ | self._equal(pairs.exclude)
        self.hidden = (hidden_IJ, hidden_IJ)
        if pairs.hide is not None:
            row_IJ, column_IJ = pairs.hide(rows, columns)
            self.hidden = (hidden_IJ | row_IJ, hidden_IJ | column_IJ)
        if pairs.log_weight is not None:
            self.log_weight_IJ = pairs.log_weight(rows, columns).to(like)

    def paired(self, tile: Tensor) -> Tensor:
        """Return a view of the paired entries of a tile (…, I, J)."""
        assert self.offset is not None
        return tile.diagonal(self.rows.start + self.offset - self.columns.start, -2, -1)

    def negatives(self, tile: Tensor, *, absent: float) -> Sides:
        """Return the tile (I, J) twice, with non-negatives of the row, and of the column, set to `absent`.

        For plain pairs this overwrites the paired entries in place instead of copying the tile.
        """
        if self.hidden is None:
            self.paired(tile).fill_(absent)
            return tile, tile
        row_hidden_IJ, column_hidden_IJ = self.hidden
        row = tile.masked_fill(row_hidden_IJ, absent)
        return row, row if column_hidden_IJ is row_hidden_IJ else tile.masked_fill(column_hidden_IJ, absent)

    def positives(self, tile: Tensor, *, absent: float) -> Tensor:
        """Return the tile (I, J) with all but the positives set to `absent`."""
        assert self.positive_IJ is not None
        return tile.masked_fill(~self.positive_IJ, absent)

    def counts(self) -> tuple[Sides, Sides]:
        """Count negatives of each row (I,) and column (J,) in this tile, then positives."""
        if self.hidden is not None and self.positive_IJ is not None:
            row_hidden_IJ, column_hidden_IJ = self.hidden
            negatives = (~row_hidden_IJ).sum(1), (~column_hidden_IJ).sum(0)
            return negatives, (self.positive_IJ.sum(1), self.positive_IJ.sum(0))
        positives_I, positives_J = self._like.new_zeros(self.shape[0]), self._like.new_zeros(self.shape[1])
        positives_I[self.paired_rows.start - self.rows.start : self.paired_rows.stop - self.rows.start] = 1
        positives_J[self.paired_columns.start - self.columns.start : self.paired_columns.stop - self.columns.start] = 1
        return (len(positives_J) - positives_I, len(positives_I) - positives_J), (positives_I, positives_J)

    def _equal(self, ids: Sides | None) -> Tensor:
        if ids is None:
            return torch.zeros(self.shape, dtype=torch.bool, device=self._like.device)
        row_IS, column_JS = (
            side[window].reshape(window.stop - window.start, -1)
            for side, window in zip(ids, (self.rows, self.columns), strict=True)
        )
        equal_IJ = row_IS[:, None, 0] == column_JS[:, 0]
        for row_I, column_J in zip(row_IS.T[1:], column_JS.T[1:], strict=True):
            equal_IJ |= row_I[:, None] == column_J
        return equal_IJ
