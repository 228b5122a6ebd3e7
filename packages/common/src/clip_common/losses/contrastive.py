"""The contrastive loss of a batch of pairs: what every form of it shares, and the plainest form.

Legend: B rows on this process, C columns, D width, F width of the references, I rows and J columns of one tile, N rows
or columns, W widths at which the loss is taken.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_common.losses.distributed import Ranks
from clip_common.losses.logits import Head
from clip_common.losses.reductions import Sides
from clip_common.losses.statistics import Direction, Ids, Normalise, check_pairs, directions, make_pairs


class Weighting(Protocol):
    """A weight for every negative pair, by what references of both sides say of it. Any object with it will do."""

    def log_weight(
        self, reference_x_IF: Tensor, reference_y_IF: Tensor, reference_x_JF: Tensor, reference_y_JF: Tensor
    ) -> Tensor:
        """Logarithms of the weights (I, J). The references of the I and the J pairs come L2-normalised, in float32."""


class Form:
    """What a loss makes of the positives and negatives of a row. Calling a form is `contrastive_loss` with it."""

    @property
    def heads(self) -> tuple[Head, ...]:
        """The sets of logits whose negatives it reads."""
        return (Head(),)

    @property
    def sigmoid(self) -> bool:
        """Whether it reads sums of softplus, not log-sum-exp."""
        return False

    @property
    def guided(self) -> bool:
        """Whether `hide` takes negatives out."""
        return False

    def each(self, side: Direction) -> Tensor:
        """The loss of each row, or of each column, (W, N); `side` is (H, W, N), H the form's own heads."""
        raise NotImplementedError

    def hide(
        self, reference_x_IF: Tensor, reference_y_IF: Tensor, reference_x_JF: Tensor, reference_y_JF: Tensor
    ) -> Sides:
        """Which of the pairs (I, J) are no negatives of the row, and which are none of the column."""
        raise NotImplementedError

    @property
    def base(self) -> "Form":
        """The form applied at each width."""
        return self

    def widths(self, full: int) -> dict[int, float]:
        """The widths at which the loss is taken, the full one among them, and the coefficient of each."""
        return {full: 1.0}

    def __call__(self, x_BD: Tensor, y_BD: Tensor, *, scale: Tensor | float, **keywords: Any) -> Tensor:
        """`contrastive_loss` of this form."""
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

    def each(self, side: Direction) -> Tensor:
        return F.softplus(side.negatives[0] - side.positives[0], threshold=30.0) + side.positives[0] - side.positive[0]


def contrastive_loss(
    x_BD: Tensor,
    y_CD: Tensor,
    *,
    scale: Tensor | float,
    form: Form | None = None,
    weighting: Weighting | None = None,
    references: tuple[Tensor, Tensor] | None = None,
    normalise: Normalise = "mean1",
    exclude: Ids | None = None,
    positive: Ids | None = None,
    bias: Tensor | float | None = None,
    tile: int | None = None,
) -> Tensor:
    """Symmetric contrastive loss: half the mean over rows plus half the mean over columns.

    When torch.distributed runs with several processes the batch is that of all of them: every process returns the loss
    of the whole batch, and gradients averaged over processes equal those of one process with all rows. Processes may
    hold different numbers of rows; all must make the call.

    Args:
        x_BD, y_CD: Embeddings of any float dtype, normalised here in float32 (float64 stays).
        scale: One over the temperature; see `LogitScale`.
        form: What is made of positives and negatives; None is `InfoNCE()`.
        weighting: Weights of the negatives; None weighs all alike.
        references: What `weighting`, or a guided form, judges pairs by: (B, F) of x and (B, F′) of y, no gradient. None
            takes the embeddings themselves.
        normalise: "mean1" divides a row's weights by their mean over the row's negatives, and for the columns the same
            matrix's columns by theirs; "none" takes the weights as they are.
        exclude: (B,) ids, or ids of rows and of columns: a pair with equal ids is no negative.
        positive: (B,) ids: a pair with equal ids is a positive besides the paired one. Two tensors, of rows and of
            columns: these alone say which pairs are positives, and C may differ from B. A row without any is left out.
        bias: Added to the logits of a sigmoid form; a softmax does not feel it.
        tile: Rows and columns of a tile; None chooses.

    Returns:
        A scalar.

    Raises:
        ValueError: Shapes that do not go together.

    Cost:
        Memory of O(B + tile²) above the inputs and their gradients. Time of four products of x and y, of three where
        all fits one tile; weights add one product of the references to each pass.

    Example:
        >>> scale = LogitScale()
        >>> loss = contrastive_loss(image_BD, text_BD, scale=scale(), form=Decoupled(), exclude=image_ids_B)
        >>> loss.backward()
    """
    form = form or InfoNCE()
    base = form.base
    judged = weighting is not None or base.guided
    check_pairs(x_BD, y_CD, exclude=exclude, positive=positive, tile=tile)
    if judged:
        _check_references(x_BD, y_CD, references or (x_BD, y_CD))
    ranks, (x_BD, y_CD) = Ranks.meet(x_BD, y_CD)
    log_weight = hide = None
    if judged:
        judges = _Judges(references or (x_BD, y_CD), ranks)
        if weighting is not None:
            log_weight = lambda rows, columns: weighting.log_weight(*judges(rows, columns))  # noqa: E731
        if base.guided:
            hide = lambda rows, columns: base.hide(*judges(rows, columns))  # noqa: E731
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
    row_sums, column_sums = _sums(base, rows, widths=len(widths)), _sums(base, columns, widths=len(widths))
    if len(ranks.sizes) > 1:
        row_sums = ranks.stack(row_sums).sum(0)  # the columns' sums are those of all ranks already
    coefficients_W = row_sums.new_tensor([widths[width] for width in sorted(widths)])
    means_W = row_sums[:-1] / row_sums[-1].clamp_min(1) + column_sums[:-1] / column_sums[-1].clamp_min(1)
    return (coefficients_W * means_W).sum() / 2


class _Judges:
    """References of any rows of this process and any columns of all."""

    def __init__(self, references: tuple[Tensor, Tensor], ranks: Ranks) -> None:
        wide = [side.detach().to(torch.promote_types(side.dtype, torch.float32)) for side in references]
        self.rows = [F.normalize(side, dim=1) for side in wide]
        self.columns = [ranks.gather(side) for side in self.rows]

    def __call__(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (x_BF, y_BF), (x_CF, y_CF) = self.rows, self.columns
        return x_BF[rows], y_BF[rows], x_CF[columns], y_CF[columns]


def _sums(form: Form, side: Direction, *, widths: int) -> Tensor:
    """The sum of the losses at each width, and last how many they are; what has no positive is left out."""
    counted_N = side.positive_count > 0
    # Where nothing is found the logarithms are −∞, and the gradient of −∞ − (−∞) would be NaN whoever leaves it out.
    side = replace(side, positives=torch.where(counted_N, side.positives, 0.0))
    each_WN = form.each(side.by_width(widths))
    return torch.cat([torch.where(counted_N, each_WN, 0.0).sum(1), counted_N.sum()[None]])


def _check_references(x_BD: Tensor, y_CD: Tensor, references: tuple[Tensor, Tensor]) -> None:
    if not len(x_BD) == len(y_CD) == len(references[0]) == len(references[1]):
        given = f"got {tuple(x_BD.shape)} and {tuple(y_CD.shape)}"
        sizes = f"references of {len(references[0])} and {len(references[1])} rows"
        raise ValueError(
            f"weights and guides judge pairs by a reference of each side, {given} and {sizes}: give B of each"
        )
