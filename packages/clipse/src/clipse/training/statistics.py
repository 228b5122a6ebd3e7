"""Statistics of a weighting's weights, logged at each training step.

Shapes: B rows of this process, D shared width, I and J the rows and columns of one tile, F width of the references.
"""

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from clip_common.losses import Weighting

BLOCK = 256
"""Rows and columns of the batch that the statistics cover; of a larger batch they are a sample."""


@runtime_checkable
class BandedWeighting(Weighting, Protocol):
    """A weighting that can also say which similarities it acts on."""

    def similarity(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """Return A (I, J), from L2-normalised references."""

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """Return (I, J) bool: the pairs that the weighting singles out."""


@torch.no_grad()
def compute_statistics(
    weighting: Weighting,
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    references: tuple[Tensor, ...],
    scale: Tensor | float,
    exclude: Tensor | None = None,
    normalise: Literal["none", "mean1"] = "mean1",
) -> dict[str, Tensor]:
    """Compute statistics of the weights of the true negatives.

    Args:
        exclude: (B,) ids, or (B, S): pairs that share one are not negatives.

    Returns:
        w_mean, w_p05, w_p50, w_p95; low_pct and high_pct, percent of weights below 0.5 and above 1.5;
        band_coverage_pct, percent of the negatives that the weighting singles out (0 unless it is a
        `BandedWeighting`); ess, the effective sample size (Σw)²/Σw² as a share of the negatives; corr_wz, the
        correlation of weight and logit (0 if one of them is constant). Empty for a batch of one pair; NaN for pairs
        of one image, which have no negatives.
    """
    if len(image_BD) < 2:
        return {}
    image_BF, text_BF = (functional.normalize(side.float(), dim=1) for side in references)
    log_weight_BB = weighting.log_weight(image_BF, text_BF, image_BF, text_BF)
    ids = torch.arange(len(image_BD), device=image_BD.device) if exclude is None else exclude
    ids_BS = ids.reshape(len(ids), -1)
    negative_BB = (ids_BS[:, None] != ids_BS[None]).all(dim=2)
    if normalise == "mean1":
        total_B1 = log_weight_BB.masked_fill(~negative_BB, -torch.inf).logsumexp(dim=1, keepdim=True)
        log_mean_B1 = total_B1 - negative_BB.sum(dim=1, keepdim=True).log()
        log_weight_BB = log_weight_BB - torch.where(total_B1 > -torch.inf, log_mean_B1, 0.0)
    # masks, not indices: their number would have to be waited for on a GPU
    log_weight_BB = log_weight_BB.masked_fill(~negative_BB, -torch.inf)
    count, weight_BB = negative_BB.sum(), log_weight_BB.exp()
    share_BB = (log_weight_BB - log_weight_BB.amax()).exp()  # of the largest: without mean1 all of them may vanish
    quantiles = torch.stack([torch.full_like(weight_BB[0, 0], share) for share in (0.05, 0.5, 0.95)])
    low, middle, high = weight_BB.masked_fill(~negative_BB, torch.nan).flatten().nanquantile(quantiles)
    unit_image, unit_text = (functional.normalize(side.float(), dim=1) for side in (image_BD, text_BD))
    logit_BB = scale * unit_image @ unit_text.T
    covered = torch.zeros_like(count)
    if isinstance(weighting, BandedWeighting):
        similarity_BB = weighting.similarity(image_BF, text_BF, image_BF, text_BF)
        covered = (weighting.in_band(similarity_BB) & negative_BB).sum()
    return {
        "w_mean": weight_BB.sum() / count,
        "w_p05": low,
        "w_p50": middle,
        "w_p95": high,
        "low_pct": 100 * ((weight_BB < 0.5) & negative_BB).sum() / count,
        "high_pct": 100 * ((weight_BB > 1.5) & negative_BB).sum() / count,
        "band_coverage_pct": 100 * covered / count,
        "ess": share_BB.sum() ** 2 / (share_BB**2).sum() / count,
        "corr_wz": _correlation(share_BB, logit_BB, negative_BB),
    }


def _correlation(one_BB: Tensor, other_BB: Tensor, counted_BB: Tensor) -> Tensor:
    one_BB, other_BB = (
        torch.where(counted_BB, side - (side * counted_BB).sum() / counted_BB.sum(), 0.0) for side in (one_BB, other_BB)
    )
    spread = one_BB.norm() * other_BB.norm()
    return torch.where(spread > 1e-6, (one_BB * other_BB).sum() / spread.clamp_min(1e-6), 0.0)
