"""Statistics of all pairs of x and y as vectors of length B, from which every contrastive loss here is computed.

Legend: K heads, B rows, C columns, D width, N either B or C.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clip_common.arrays import as_tensor
from clip_common.losses.distributed import Processes
from clip_common.losses.logits import Head
from clip_common.losses.pairs import MaskFunction, Pairs, TileFunction
from clip_common.losses.reductions import (
    BoundedLogSumExp,
    LogSumExp,
    Reduction,
    Sides,
    SoftplusSum,
    WeightedSoftplusSum,
)
from clip_common.losses.tiles import Totals, reduce_pairs

Normalise = Literal["none", "mean1"]
Ids = Tensor | tuple[Tensor, Tensor]
"""Whole-number ids of B pairs, or those of the rows and those of the columns. `exclude` also takes (B, S)."""
GivenIds = Tensor | ArrayLike | tuple[Tensor | ArrayLike, Tensor | ArrayLike]
"""Ids as users give them; `as_pairs` makes tensors of them."""


@dataclass(frozen=True)
class Direction:
    """Statistics of one direction: a value for each row, or for each column. Shapes (K, N), or (N,) for one head.

    Attributes:
        positive_mean: Mean logit of the positives; 0 if there are none.
        positive_lse: Log-sum-exp of the positives' logits. In the sigmoid operation: Σ log(1 + exp(−z)).
        negative_lse: Log-sum-exp of the negatives' logits plus log-weights; −∞ if there are none. In the sigmoid
            operation: Σ w·log(1 + exp(z)).
        positive_count, negative_count: Number of positives and negatives (N,), without gradient.
        scale: Factor of the cosines.
    """

    positive_mean: Tensor
    positive_lse: Tensor
    negative_lse: Tensor
    positive_count: Tensor
    negative_count: Tensor
    scale: Tensor

    def head(self, k: int) -> "Direction":
        """Return the statistics of head k, (N,)."""
        return replace(
            self,
            positive_mean=self.positive_mean[k],
            positive_lse=self.positive_lse[k],
            negative_lse=self.negative_lse[k],
        )

    def by_width(self, widths: int) -> "Direction":
        """Reshape (K, N), ordered by width and then by head, to (H, W, N): H heads at each of W widths."""
        mean, positive_lse, negative_lse = (
            field.unflatten(0, (widths, -1)).transpose(0, 1)
            for field in (self.positive_mean, self.positive_lse, self.negative_lse)
        )
        return replace(self, positive_mean=mean, positive_lse=positive_lse, negative_lse=negative_lse)


@dataclass(frozen=True)
class PairStatistics:
    """Differentiable vectors over rows and columns; unpacks to `row_lse_B, column_lse_C, positives_B`."""

    rows: Direction
    columns: Direction

    @property
    def row_lse_B(self) -> Tensor:
        """Log-sum-exp over each row's negatives."""
        return self.rows.negative_lse

    @property
    def column_lse_C(self) -> Tensor:
        """Log-sum-exp over each column's negatives."""
        return self.columns.negative_lse

    @property
    def positives_B(self) -> Tensor:
        """Logit of each row's positive, or the mean of its positives'."""
        return self.rows.positive_mean

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.row_lse_B, self.column_lse_C, self.positives_B)


def pair_statistics(
    x_BD: Tensor | ArrayLike,
    y_CD: Tensor | ArrayLike,
    *,
    scale: Tensor | float,
    log_weight: TileFunction | None = None,
    normalise: Normalise = "mean1",
    exclude: GivenIds | None = None,
    positive: GivenIds | None = None,
    tile: int | None = None,
) -> PairStatistics:
    """Compute the log-sum-exp over negatives of each row and column, and the positives' logits, without a B×C matrix.

    z_ij = scale · cos(x_i, y_j);   row_lse_i = log Σ_j w̃_ij exp(z_ij) over the negatives j of i, columns likewise.

    Args:
        x_BD, y_CD: Embeddings of any float dtype; normalised here in float32 (float64 stays). Row i is paired with
            column i. Arrays and nested lists are taken too, here and for ids.
        scale: One over the temperature.
        log_weight: (rows, columns) slices → (I, J) tile of log-weights; a constant for the gradient.
        normalise: "mean1" divides a row's weights by their mean over the row's negatives, and in the other direction
            the same matrix's columns by theirs; "none" takes the weights as they are.
        exclude: (B,) ids, or ids of rows and of columns: a pair with equal ids is not a negative.
        positive: (B,) ids: a pair with equal ids is a positive too, like the paired one. Two tensors, of rows and of
            columns: these alone say which pairs are positives, and C may differ from B.
        tile: Rows and columns of a tile; None chooses, and keeps everything in one when it is small.

    Returns:
        `PairStatistics`.

    Raises:
        ValueError: Shapes that do not go together.

    Cost:
        O(B + tile²) memory above the inputs and their gradients; one product of x and y in the forward, three in the
        backward, which recomputes the tiles.

    Example:
        >>> row_lse_B, column_lse_B, positives_B = pair_statistics(x_BD, y_BD, scale=14.0)
        >>> torch.nn.functional.softplus(row_lse_B - positives_B).mean()  # InfoNCE from x to y
    """
    x_BD, y_CD, exclude, positive = as_pairs(x_BD, y_CD, exclude=exclude, positive=positive)
    check_pairs(x_BD, y_CD, exclude=exclude, positive=positive, tile=tile)
    ranks = Processes.single(len(y_CD))
    pairs = make_pairs(exclude=exclude, positive=positive, log_weight=log_weight, ranks=ranks)
    heads = (Head(width=x_BD.shape[1]),)
    rows, columns = directions(x_BD, y_CD, scale=scale, heads=heads, pairs=pairs, normalise=normalise, tile=tile)
    return PairStatistics(rows.head(0), columns.head(0))


def as_pairs(
    x_BD: Tensor | ArrayLike, y_CD: Tensor | ArrayLike, *, exclude: GivenIds | None, positive: GivenIds | None
) -> tuple[Tensor, Tensor, Ids | None, Ids | None]:
    """Return embeddings and ids as tensors; arrays and lists beside a tensor go to its device."""
    device = next((side.device for side in (x_BD, y_CD) if isinstance(side, Tensor)), None)
    x_BD, y_CD = as_tensor(x_BD, "x", device=device), as_tensor(y_CD, "y", device=device)
    ids = as_ids(exclude, "exclude", device=x_BD.device), as_ids(positive, "positive", device=x_BD.device)
    return x_BD, y_CD, *ids


def as_ids(ids: GivenIds | None, called: str, *, device: torch.device) -> Ids | None:
    """Return ids as a tensor, or as two: a tuple of two that are no single numbers holds those of rows and columns."""
    if ids is None or isinstance(ids, Tensor):
        return ids
    if isinstance(ids, tuple) and len(ids) == 2 and all(np.ndim(side) for side in ids if not isinstance(side, Tensor)):
        rows, columns = (as_tensor(side, called, device=device) for side in ids)
        return rows, columns
    return as_tensor(cast(ArrayLike, ids), called, device=device)


def check_pairs(x_BD: Tensor, y_CD: Tensor, *, exclude: Ids | None, positive: Ids | None, tile: int | None) -> None:
    """Raise ValueError if shapes do not match. Call before any collective: an error on one rank would hang the rest."""
    given = f"got {tuple(x_BD.shape)} and {tuple(y_CD.shape)}"
    if x_BD.ndim != 2 or y_CD.ndim != 2 or x_BD.shape[1] != y_CD.shape[1]:
        raise ValueError(f"x and y must be (B, D) with one width D, {given}: project both to the same width")
    if len(x_BD) != len(y_CD) and not isinstance(positive, tuple):
        raise ValueError(
            f"row i of x is paired with row i of y, {given}: give as many rows, or positive=(ids of x, ids of y)"
        )
    named = {"exclude": exclude, "positive": positive}
    for name, (rows, columns) in {name: _both(ids) for name, ids in named.items() if ids is not None}.items():
        sets = rows.shape[1:2] if name == "exclude" else ()
        if rows.shape != (len(x_BD), *sets) or columns.shape != (len(y_CD), *sets):
            shapes = f"{tuple(rows.shape)} and {tuple(columns.shape)}"
            raise ValueError(
                f"{name} must hold one id of each row of x and of y, {given} and ids {shapes}: give as many"
            )
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, or None to choose, got {tile}")


def make_pairs(
    *,
    exclude: Ids | None,
    positive: Ids | None,
    ranks: Processes,
    log_weight: TileFunction | None = None,
    hide: MaskFunction | None = None,
) -> Pairs:
    """Build the `Pairs` of local rows × columns of all ranks, from ids as the caller gives them."""
    return Pairs(
        offset=None if isinstance(positive, tuple) else ranks.offset,
        exclude=_sides(exclude, ranks),
        positive=_sides(positive, ranks),
        log_weight=log_weight,
        hide=hide,
    )


def directions(
    x_BD: Tensor,
    y_CD: Tensor,
    *,
    scale: Tensor | float,
    heads: tuple[Head, ...],
    pairs: Pairs,
    bias: Tensor | float | None = None,
    sigmoid: bool = False,
    normalise: Normalise = "mean1",
    tile: int | None = None,
    ranks: Processes | None = None,
) -> tuple[Direction, Direction]:
    """Compute both directions of every head: local rows × all columns, with column totals merged over the ranks.

    Args:
        x_BD: This process's rows.
        y_CD: The columns of all processes.
        heads: In order of width, the last D wide.
        sigmoid: Sums of softplus instead of log-sum-exp.
        ranks: The processes that hold the other rows; None for a single process.
    """
    dtype = torch.promote_types(torch.promote_types(x_BD.dtype, y_CD.dtype), torch.float32)
    with torch.autocast(device_type=x_BD.device.type, enabled=False):
        scale = _make_scalar(scale, dtype=dtype, device=x_BD.device)
        if bias is not None:
            bias = _make_scalar(bias, dtype=dtype, device=x_BD.device)
        negatives, positives = _reductions(scale, heads=heads, pairs=pairs, sigmoid=sigmoid)
        row_totals, column_totals = reduce_pairs(
            x_BD.to(dtype),
            y_CD.to(dtype),
            scale=scale,
            bias=bias,
            heads=heads,
            pairs=pairs,
            negatives=negatives,
            positives=positives,
            tile=tile,
        )
        if ranks is not None and len(ranks.sizes) > 1:
            column_totals = _merged(column_totals, ranks, negatives=negatives, positives=positives)
        rows, columns = (
            _direction(totals, scale, normalise, heads, negatives) for totals in (row_totals, column_totals)
        )
    return rows, columns


def _make_scalar(value: Tensor | float, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(device, dtype).reshape(())
    return torch.full((), value, dtype=dtype, device=device)  # filled there: a copy to a GPU would wait for it


def _reductions(scale: Tensor, *, heads: tuple[Head, ...], pairs: Pairs, sigmoid: bool) -> tuple[Reduction, Reduction]:
    if sigmoid:
        return SoftplusSum(+1) if pairs.log_weight is None else WeightedSoftplusSum(), SoftplusSum(-1)
    # Elsewhere than on a CPU the scale's value would have to be waited for, and fused passes make up for it.
    if scale.device.type == "cpu" and pairs.plain:
        largest = abs(scale.item()) * max(head.times for head in heads)
        if largest <= BoundedLogSumExp.limit(scale.dtype):
            return BoundedLogSumExp(), LogSumExp()
    return LogSumExp(), LogSumExp()


def _merged(totals: Totals, ranks: Processes, *, negatives: Reduction, positives: Reduction) -> Totals:
    """Sum the totals over the rows of all ranks, in one collective."""
    fields = [torch.atleast_2d(field) for field in totals]
    parts = ranks.stack(torch.cat(fields)).split([len(field) for field in fields], dim=1)
    negative, positive_sum, positive, log_weight, negative_count, positive_count = parts
    return Totals(
        negatives.merge(negative),
        positive_sum.sum(0),
        positives.merge(positive),
        LogSumExp().merge(log_weight)[0],
        negative_count.sum(0)[0],
        positive_count.sum(0)[0],
    )


def _direction(
    totals: Totals, scale: Tensor, normalise: Normalise, heads: tuple[Head, ...], negatives: Reduction
) -> Direction:
    log_mean_KN = torch.zeros_like(totals.negative_total_KN)
    if normalise == "mean1":
        log_mean_N = totals.log_weight_N - totals.negatives_N.log()
        log_mean_N = torch.where(totals.log_weight_N > float("-inf"), log_mean_N, 0.0)
        log_mean_KN = torch.stack([log_mean_N if head.weighted else torch.zeros_like(log_mean_N) for head in heads])
    return Direction(
        positive_mean=totals.positive_sum_KN / totals.positives_N.clamp_min(1.0),
        positive_lse=totals.positive_total_KN,
        negative_lse=negatives.divide(totals.negative_total_KN, log_mean_KN),
        positive_count=totals.positives_N,
        negative_count=totals.negatives_N,
        scale=scale,
    )


def _sides(ids: Ids | None, ranks: Processes) -> Sides | None:
    if ids is None:
        return None
    rows, columns = _both(ids)
    return rows, ranks.gather(columns)


def _both(ids: Ids) -> Sides:
    return ids if isinstance(ids, tuple) else (ids, ids)
