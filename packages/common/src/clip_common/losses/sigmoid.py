"""Sums of softplus over all pairs of x and y, from which the sigmoid loss is computed.

Legend: B rows, C columns, D width.
"""

from numpy.typing import ArrayLike
from torch import Tensor

from clip_common.losses.distributed import Processes
from clip_common.losses.logits import Head
from clip_common.losses.pairs import TileFunction
from clip_common.losses.statistics import Direction, GivenIds, Normalise, as_pairs, check_pairs, directions, make_pairs


def pair_softplus(
    x_BD: Tensor | ArrayLike,
    y_CD: Tensor | ArrayLike,
    *,
    scale: Tensor | float,
    bias: Tensor | float | None = None,
    log_weight: TileFunction | None = None,
    normalise: Normalise = "mean1",
    exclude: GivenIds | None = None,
    positive: GivenIds | None = None,
    tile: int | None = None,
) -> tuple[Direction, Direction]:
    """Sum w̃·log(1 + exp(z)) over the negatives of each row and column, and log(1 + exp(−z)) over the positives.

    z_ij = scale · cos(x_i, y_j) + bias; arguments and cost as in `pair_statistics`, recomputed in the backward.

    Returns:
        Rows and columns; their `negative_lse` and `positive_lse` hold the sums.

    Example:
        >>> rows, _ = pair_softplus(x_BD, y_BD, scale=10.0, bias=-10.0)
        >>> (rows.positive_lse + rows.negative_lse).mean()  # the sigmoid loss
    """
    x_BD, y_CD, exclude, positive = as_pairs(x_BD, y_CD, exclude=exclude, positive=positive)
    check_pairs(x_BD, y_CD, exclude=exclude, positive=positive, tile=tile)
    pairs = make_pairs(exclude=exclude, positive=positive, log_weight=log_weight, ranks=Processes.single(len(y_CD)))
    heads = (Head(width=x_BD.shape[1]),)
    rows, columns = directions(
        x_BD,
        y_CD,
        scale=scale,
        bias=bias,
        heads=heads,
        pairs=pairs,
        sigmoid=True,
        normalise=normalise,
        tile=tile,
    )
    return rows.head(0), columns.head(0)
