"""What each pair (i, j) of a batch is to a loss: a positive, a negative with a weight, or neither; tile by tile.

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
        offset: Column `offset + i` is paired with row i, as its positive; None: only `positive` ids make positives.
        exclude: (B,) and (C,) ids; a pair with equal ids is no negative.
        positive: (B,) and (C,) ids; a pair with equal ids is a positive.
        log_weight: (rows, columns) → (I, J) log-weights of the negatives, without gradient.
        hide: (rows, columns) → two (I, J) masks: no negative of the row, no negative of the column.
    """

    offset: int | None = 0
    exclude: Sides | None = None
    positive: Sides | None = None
    log_weight: TileFunction | None = None
    hide: MaskFunction | None = None

    @property
    def plain(self) -> bool:
        """One positive a row, every other pair a negative of weight 1: then no mask is made."""
        return all(rule is None for rule in (self.exclude, self.positive, self.log_weight, self.hide))


class Tile:
    """What the rules say about the pairs of some rows and some columns.

    Attributes:
        paired_rows, paired_columns: Whose pairing lies in this tile.
        positive_IJ: The positives; None for plain pairs.
        hidden: What is no negative of the row, and of the column, (I, J) each; None for plain pairs.
        log_weight_IJ: None without weights.
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
        """View of the paired entries of a tile (…, I, J)."""
        assert self.offset is not None
        return tile.diagonal(self.rows.start + self.offset - self.columns.start, -2, -1)

    def negatives(self, tile: Tensor, *, absent: float) -> Sides:
        """A tile (I, J) with all that is no negative of the row, and of the column, set to `absent`.

        Plain pairs cost no pass over the tile: their paired entries are overwritten in place.
        """
        if self.hidden is None:
            self.paired(tile).fill_(absent)
            return tile, tile
        row_hidden_IJ, column_hidden_IJ = self.hidden
        row = tile.masked_fill(row_hidden_IJ, absent)
        return row, row if column_hidden_IJ is row_hidden_IJ else tile.masked_fill(column_hidden_IJ, absent)

    def positives(self, tile: Tensor, *, absent: float) -> Tensor:
        """A tile (I, J) with all but the positives set to `absent`."""
        assert self.positive_IJ is not None
        return tile.masked_fill(~self.positive_IJ, absent)

    def counts(self) -> tuple[Sides, Sides]:
        """How many negatives each row (I,) and column (J,) has here, and how many positives."""
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
        return ids[0][self.rows, None] == ids[1][None, self.columns]
