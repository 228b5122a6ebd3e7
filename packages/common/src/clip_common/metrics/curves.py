"""AUROC, average precision and F1-max of more scores than fit in memory."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clip_common.metrics.histogram import Bins, Mass, ScoreHistogram, as_floats, as_labels

DOUBT = 0.01
"""`compute` warns if the order of scores within bins could change AUROC or AP by more than this."""


@dataclass(frozen=True)
class CurveResult:
    """Metrics of how well scores separate positives from negatives.

    Attributes:
        auroc: probability that a positive scores above a negative, ties counting half.
        ap: average precision, Σ (R_k − R_{k−1}) · P_k over falling thresholds (as sklearn: no interpolation).
        f1_max: the best F1 that any threshold gives.
        threshold: that threshold; `score >= threshold` says positive.
        shared: share of the scores whose bin holds other scores too, in [0, 1]; 0 if `exact`.
        auroc_error, ap_error: most that the order within these bins can change `auroc` and `ap`; 0 if `exact`.
    """

    auroc: float
    ap: float
    f1_max: float
    threshold: float
    shared: float
    auroc_error: float
    ap_error: float


class StreamingCurve:
    """AUROC, AP and F1-max from a histogram of scores: constant memory, mergeable.

    Equals sklearn's `roc_auc_score` and `average_precision_score` when `exact`. Otherwise scores in one bin count as
    tied. The result says by how much that can have moved it, and `compute` warns above 0.01: for scores in a narrow
    range, such as probabilities crowded at 1, use `exact`, more bits, or logits.

    Args:
        bits: leading bits of a float32 score that define its bin (sign and exponent take 9). Memory 25 · 2^bits bytes.
        exact: keep all scores distinct, float64 ones in float64; memory then grows with them.

    Example:
        >>> curve = StreamingCurve()
        >>> for map_HW, mask_HW in maps:
        ...     curve.update(map_HW, mask_HW)
        >>> curve.compute().auroc
    """

    def __init__(self, *, bits: int = 20, exact: bool = False) -> None:
        self._histogram = ScoreHistogram(bits=bits, exact=exact)

    def update(self, scores: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> None:
        """Add scores of any shape, and labels 0/1 or booleans of the same shape.

        Raises:
            ValueError: a NaN score, a label that is neither 0 nor 1, unequal shapes. Nothing is added then.
        """
        scores = as_floats(scores)
        labels = as_labels(labels, shape=scores.shape)
        self._histogram.add(scores.ravel(), labels.ravel())

    def merge(self, other: "StreamingCurve") -> None:
        """Add the data of another curve of the same resolution (from another rank or worker)."""
        self._histogram.merge(other._histogram)

    def compute(self) -> CurveResult:
        """Compute the metrics of all scores added so far.

        Raises:
            ValueError: no scores, or scores of one class only: then no curve exists.
        """
        bins = self._histogram.descending()
        negatives, positives = bins.negatives_K.sum(), bins.positives_K.sum()
        if not (negatives and positives):
            seen = f"{negatives:.0f} negatives and {positives:.0f} positives"
            raise ValueError(f"AUROC, AP and F1 need scores of both classes; got {seen}: report them as not available")
        hits_K, alarms_K = bins.positives_K.cumsum(), bins.negatives_K.cumsum()
        f1_K = 2 * hits_K / (hits_K + alarms_K + positives)
        best = int(f1_K.argmax())
        pairs = negatives * positives
        result = CurveResult(
            auroc=float((bins.negatives_K * (hits_K - bins.positives_K / 2)).sum() / pairs),
            ap=float((bins.positives_K * hits_K / (hits_K + alarms_K)).sum() / positives),
            f1_max=float(f1_K[best]),
            threshold=float(bins.lowest_K[best]),
            shared=float(shared_mass(bins)),
            auroc_error=float((bins.negatives_K * bins.positives_K)[bins.mixed_K].sum() / (2 * pairs)),
            ap_error=_ap_error(bins, hits_K, alarms_K),
        )
        if max(result.auroc_error, result.ap_error) > DOUBT:
            warnings.warn(
                f"{result.shared:.0%} of the scores share a bin with different scores, so AUROC "
                f"{result.auroc:.4f} may be off by {result.auroc_error:.4f} and AP {result.ap:.4f} by "
                f"{result.ap_error:.4f}: use exact=True or more bits, or pass logits instead of probabilities",
                stacklevel=2,
            )
        return result


def shared_mass(bins: Bins) -> float:
    """Return the share of all mass that is in bins with different scores, in [0, 1]."""
    mass_K = bins.negatives_K + bins.positives_K
    return float(mass_K[bins.mixed_K].sum() / mass_K.sum())


def _ap_error(bins: Bins, hits_K: Mass, alarms_K: Mass) -> float:
    """Return the most by which AP can differ from that of the bins, over all orders within bins of different scores.

    At best all p positives of a bin tie ahead of its n negatives. At worst they follow them one by one: the i-th,
    behind h positives and f negatives, has the precision (h + i) / (h + i + f), and the sum of these is
    p − f · (ψ(h + f + p + 1) − ψ(h + f + 1)).
    """
    shared_K = np.flatnonzero(bins.mixed_K & (bins.positives_K > 0))
    p, n = bins.positives_K[shared_K], bins.negatives_K[shared_K]
    hits, alarms = hits_K[shared_K], alarms_K[shared_K]
    tied, best = p * hits / (hits + alarms), p * hits / (hits + alarms - n)
    worst = p - alarms * (_digamma(hits + alarms + 1) - _digamma(hits - p + alarms + 1))
    return float(max((best - tied).sum(), (tied - worst).sum()) / bins.positives_K.sum())


def _digamma(values: Mass) -> Mass:
    return torch.from_numpy(values).digamma().numpy()
