"""AUROC, average precision and F1-max of more scores than fit in memory."""

from dataclasses import dataclass

from numpy.typing import ArrayLike
from torch import Tensor

from clip_common.metrics.histogram import ScoreHistogram, as_labels, as_scores


@dataclass(frozen=True)
class CurveResult:
    """Metrics of how well scores separate positives from negatives.

    Attributes:
        auroc: probability that a positive scores above a negative, ties counting half.
        ap: average precision, Σ (R_k − R_{k−1}) · P_k over falling thresholds (as sklearn: no interpolation).
        f1_max: the best F1 that any threshold gives.
        threshold: that threshold; `score >= threshold` says positive.
    """

    auroc: float
    ap: float
    f1_max: float
    threshold: float


class StreamingCurve:
    """AUROC, AP and F1-max from a histogram of scores: constant memory, mergeable.

    Equals sklearn's `roc_auc_score` and `average_precision_score` when `exact`. Otherwise scores in one bin count as
    tied, which moves the AUROC by at most half the share of (positive, negative) pairs in one bin. For scores in a
    narrow range (0.9000 … 0.9010) use `exact`, more bits, or stretch them by a monotone function first.

    Args:
        bits: leading bits of a float32 score that define its bin (sign and exponent take 9). Memory 16 · 2^bits bytes.
        exact: keep all scores distinct; memory then grows with them.

    Example:
        >>> curve = StreamingCurve()
        >>> for map_HW, mask_HW in maps:
        ...     curve.update(map_HW, mask_HW)
        >>> curve.compute().auroc
    """

    def __init__(self, *, bits: int = 20, exact: bool = False) -> None:
        self._histogram = ScoreHistogram(bits=bits, exact=exact)

    def update(self, scores: Tensor | ArrayLike, labels: Tensor | ArrayLike) -> None:
        """Add scores (read as float32) of any shape, and labels 0/1 or booleans of the same shape.

        Raises:
            ValueError: a NaN score, a label that is neither 0 nor 1, unequal shapes. Nothing is added then.
        """
        scores = as_scores(scores)
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
        scores_K, negatives_K, positives_K = self._histogram.descending()
        negatives, positives = negatives_K.sum(), positives_K.sum()
        if not (negatives and positives):
            seen = f"{negatives:.0f} negatives and {positives:.0f} positives"
            raise ValueError(f"AUROC, AP and F1 need scores of both classes; got {seen}: report them as not available")
        hits_K, alarms_K = positives_K.cumsum(), negatives_K.cumsum()
        f1_K = 2 * hits_K / (hits_K + alarms_K + positives)
        best = int(f1_K.argmax())
        return CurveResult(
            auroc=float((negatives_K * (hits_K - positives_K / 2)).sum() / (negatives * positives)),
            ap=float((positives_K * hits_K / (hits_K + alarms_K)).sum() / positives),
            f1_max=float(f1_K[best]),
            threshold=float(scores_K[best]),
        )
