"""InfoNCE, CLIP's loss, and `contrastive_loss`, the operation that every form of contrastive loss shares.

Legend: B rows on this process, C columns, D width, F width of the references, I rows and J columns of one tile, N rows
or columns, W widths at which the loss is taken.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from clip_common.arrays import as_tensor
from clip_common.losses.distributed import Processes
from clip_common.losses.logits import Head
from clip_common.losses.reductions import Sides
from clip_common.losses.statistics import Direction, GivenIds, Normalise, as_pairs, check_pairs, directions, make_pairs


class Weighting(Protocol):
    """Protocol: a weight for every negative pair, computed from reference features of both sides."""

    def log_weight(
        self, reference_x_IF: Tensor, reference_y_IF: Tensor, reference_x_JF: Tensor, reference_y_JF: Tensor
    ) -> Tensor:
        """Return log-weights (I, J). References of the I and J pairs are L2-normalised float32."""


class Form:
    """A formula for the loss of a row, given statistics of its positives and negatives. Calls `contrastive_loss`."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """Sets of logits whose negatives the formula reads."""
        return (Head(),)

    @property
    def sigmoid(self) -> bool:
        """Whether the formula reads sums of softplus instead of log-sum-exp."""
        return False

    @property
    def guided(self) -> bool:
        """Whether `hide` removes negatives."""
        return False

    def row_losses(self, side: Direction) -> Tensor:
        """Return the loss (W, N) of each row, or of each column; `side` is (H, W, N) for H heads of the form."""
        raise NotImplementedError

    def hide(
        self, reference_x_IF: Tensor, reference_y_IF: Tensor, reference_x_JF: Tensor, reference_y_JF: Tensor
    ) -> Sides:
        """Return two masks (I, J): pairs to drop from the row's negatives, and from the column's."""
        raise NotImplementedError

    @property
    def base(self) -> "Form":
        """Form applied at each width."""
        return self

    def widths(self, full: int) -> dict[int, float]:
        """Return width → coefficient for every width at which the loss is taken, the full one included."""
        return {full: 1.0}

    def __call__(
        self, x_BD: Tensor | ArrayLike, y_BD: Tensor | ArrayLike, *, scale: Tensor | float, **keywords: Any
    ) -> Tensor:
        """Return `contrastive_loss` with this form."""
        return contrastive_loss(x_BD, y_BD, scale=scale, form=self, **keywords)


@dataclass(frozen=True)
class InfoNCE(Form):
    """CLIP's loss: cross-entropy of picking the positive among all, both ways.

    L_i = −z_ii + log(e^{z_ii} + Σ_j w̃_ij e^{z_ij}) over the negatives j. With several positives the target is uniform
    over them: −mean_p z_ip + log(Σ_p e^{z_ip} + Σ_j w̃_ij e^{z_ij}).

    Equals:
        `open_clip.ClipLoss` without weights and with one positive each.
    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, figure 3.

    Example:
        >>> loss = InfoNCE()(image_BD, text_BD, scale=1 / 0.07)
    """

    def row_losses(self, side: Direction) -> Tensor:
        return (
            F.softplus(side.negative_lse[0] - side.positive_lse[0], threshold=30.0)
            + side.positive_lse[0]
            - side.positive_mean[0]
        )


def contrastive_loss(
    x_BD: Tensor | ArrayLike,
    y_CD: Tensor | ArrayLike,
    *,
    scale: Tensor | float,
    form: Form | None = None,
    weighting: Weighting | None = None,
    references: tuple[Tensor | ArrayLike, Tensor | ArrayLike] | None = None,
    normalise: Normalise = "mean1",
    exclude: GivenIds | None = None,
    positive: GivenIds | None = None,
    bias: Tensor | float | None = None,
    tile: int | None = None,
) -> Tensor:
    """Compute the symmetric contrastive loss: half the mean over rows plus half the mean over columns.

    With several torch.distributed processes the batch is gathered from all: every process returns the loss of the whole
    batch, and gradients averaged over processes equal those of one process with all rows. Processes may hold different
    numbers of rows; every process must call.

    Args:
        x_BD, y_CD: Embeddings of any float dtype, normalised here in float32 (float64 stays). Arrays and nested lists
            are taken too, here and for references and ids.
        scale: One over the temperature; see `LogitScale`.
        form: Formula of the loss; None is `InfoNCE()`.
        weighting: Weights of the negatives; None gives all the same weight.
        references: Features from which `weighting` or a guided form computes: (B, F) for x and (B, F′) for y, without
            gradient. None uses the embeddings; their shapes are checked even where nothing reads them.
        normalise: "mean1" divides a row's weights by their mean over the row's negatives, and a
            column's by their mean over the column's; "none" leaves the weights unchanged.
        exclude: (B,) ids, or ids of rows and of columns: a pair with equal ids is not used as a negative. (B, S) holds
            S ids of each, such as its image and its caption: one that is equal is enough.
        positive: (B,) ids: a pair with equal ids is an additional positive. With two tensors (rows, columns) only they
            define positives, and C may differ from B. Rows without a positive are skipped.
        bias: Added to the logits of a sigmoid form; softmax forms ignore it.
        tile: Rows and columns of a tile; None chooses a size.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes do not match.

    Cost:
        Memory O(B + tile²) above the inputs and their gradients. Time of four products of x and y, or three if all fits
        in one tile; weights add one product of the references to each pass.

    Example:
        >>> scale = LogitScale()
        >>> loss = contrastive_loss(image_BD, text_BD, scale=scale(), form=Decoupled(), exclude=image_ids_B)
        >>> loss.backward()
    """
    form = form or InfoNCE()
    base = form.base
    needs_references = weighting is not None or base.guided
    x_BD, y_CD, exclude, positive = as_pairs(x_BD, y_CD, exclude=exclude, positive=positive)
    check_pairs(x_BD, y_CD, exclude=exclude, positive=positive, tile=tile)
    of_x, of_y = (as_tensor(side, "references", device=x_BD.device) for side in references or (x_BD, y_CD))
    if needs_references or references is not None:
        _check_references(x_BD, y_CD, (of_x, of_y), guided=base.guided)
    ranks, (x_BD, y_CD) = Processes.discover(x_BD, y_CD)
    log_weight = hide = None
    if needs_references:
        pair_references = _References((of_x, of_y), ranks)
        if weighting is not None:
            log_weight = lambda rows, columns: weighting.log_weight(*pair_references(rows, columns))  # noqa: E731
        if base.guided:
            hide = lambda rows, columns: base.hide(*pair_references(rows, columns))  # noqa: E731
    widths = form.widths(x_BD.shape[1])
    rows, columns = directions(
        x_BD,
        ranks.gather(y_CD),
        scale=scale,
        bias=bias if base.sigmoid else None,
        heads=tuple(head._replace(width=width) for width in sorted(widths) for head in base.heads),
        pairs=make_pairs(exclude=exclude, positive=positive, log_weight=log_weight, hide=hide, ranks=ranks),
        sigmoid=base.sigmoid,
        normalise=normalise,
        tile=tile,
        ranks=ranks,
    )
    row_sums, column_sums = sum_losses(base, rows, widths=len(widths)), sum_losses(base, columns, widths=len(widths))
    if len(ranks.sizes) > 1:
        row_sums = ranks.stack(row_sums).sum(0)  # the columns' sums are those of all ranks already
    means_W = row_sums[:-1] / row_sums[-1].clamp_min(1) + column_sums[:-1] / column_sums[-1].clamp_min(1)
    return add_widths(means_W, widths) / 2


def add_widths(losses_W: Tensor, widths: dict[int, float]) -> Tensor:
    """Return the sum of the losses at each width, in rising order, times its coefficient."""
    # a tensor of coefficients would be copied to a GPU, which waits for all that the GPU has still to do
    coefficients = (widths[width] for width in sorted(widths))
    return torch.stack([times * loss for times, loss in zip(coefficients, losses_W, strict=True)]).sum()


class _References:
    """Reference features of local rows and of the columns of all processes."""

    def __init__(self, references: tuple[Tensor, Tensor], ranks: Processes) -> None:
        wide = [side.detach().to(torch.promote_types(side.dtype, torch.float32)) for side in references]
        self.rows = [F.normalize(side, dim=1) for side in wide]
        self.columns = [ranks.gather(side) for side in self.rows]

    def __call__(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (x_BF, y_BF), (x_CF, y_CF) = self.rows, self.columns
        return x_BF[rows], y_BF[rows], x_CF[columns], y_CF[columns]


def sum_losses(form: Form, side: Direction, *, widths: int) -> Tensor:
    """Return the sum of losses at each width followed by their number; rows without a positive are skipped."""
    counted_N = side.positive_count > 0
    # Rows without a positive have log-sum-exp −∞; the gradient of −∞ − (−∞) is NaN even if the row is masked later.
    side = replace(side, positive_lse=torch.where(counted_N, side.positive_lse, 0.0))
    each_WN = form.row_losses(side.by_width(widths))
    return torch.cat([torch.where(counted_N, each_WN, 0.0).sum(1), counted_N.sum()[None]])


def _check_references(x_BD: Tensor, y_CD: Tensor, references: tuple[Tensor, Tensor], *, guided: bool) -> None:
    """Raise ValueError unless each row of x and of y has a reference; a guide's are compared across, in one space."""
    shapes = [tuple(side.shape) for side in references]
    given = f"got {tuple(x_BD.shape)} and {tuple(y_CD.shape)} with references of the shapes {shapes}"
    if any(len(shape) != 2 for shape in shapes) or not len(x_BD) == len(y_CD) == shapes[0][0] == shapes[1][0]:
        raise ValueError(f"references must be (B, F) for x and (B, F') for y, one per row, {given}: give B of each")
    if guided and shapes[0][1] != shapes[1][1]:
        raise ValueError(f"a guide compares references of x with references of y, {given}: give both one width")
