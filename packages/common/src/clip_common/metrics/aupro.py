"""AUPRO: overlap with each defective region against the false positive rate on defect-free pixels.

Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021: at each threshold the per-region overlap (PRO) is the
mean, over the connected regions of the ground truth, of the share of the region that scores at or above it; the curve
of PRO over the false positive rate is integrated from 0 to 0.3 and divided by 0.3.
"""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clip_common.metrics.curves import DOUBT, shared_mass
from clip_common.metrics.histogram import ScoreHistogram, as_floats, as_labels

NEIGHBOURS = np.zeros((3, 3, 3))
NEIGHBOURS[1] = 1  # all eight within an image, none in the images before and after it in a batch


class StreamingAUPRO:
    """Area under the per-region-overlap curve, in constant memory, mergeable.

    Each pixel of a region has weight 1/area, so the overlap averaged over regions is a weighted cumulative histogram of
    scores, and no threshold has to be tried. Regions are labelled once, in `update`.

    Args:
        limit: false positive rate up to which the curve is integrated.
        bits: as in `StreamingCurve`.
        exact: as in `StreamingCurve`.

    Example:
        >>> aupro = StreamingAUPRO()
        >>> for maps_BHW, masks_BHW in batches:
        ...     aupro.update(maps_BHW, masks_BHW)
        >>> aupro.compute()
    """

    def __init__(self, *, limit: float = 0.3, bits: int = 20, exact: bool = False) -> None:
        if not 0 < limit <= 1:
            raise ValueError(f"limit must be a false positive rate in (0, 1]; got {limit}")
        self.limit = limit
        self._histogram = ScoreHistogram(bits=bits, exact=exact)

    def update(self, scores: Tensor | ArrayLike, masks: Tensor | ArrayLike) -> None:
        """Add the score maps of one image (H, W) or of several (B, H, W), and their masks, 1 on defects.

        Raises:
            ValueError: a NaN score, a mask value that is neither 0 nor 1, unequal or other shapes. Nothing is added
                then.
            ImportError: scipy is not installed.
        """
        scores = as_floats(scores)
        masks = as_labels(masks, shape=scores.shape)
        if scores.ndim not in (2, 3):
            raise ValueError(f"score maps must be (H, W) or (B, H, W); got the shape {scores.shape}")
        region_N = _regions(masks)
        area_R = np.bincount(region_N)
        self._histogram.add(scores[~masks], np.zeros(masks.size - len(region_N), dtype=bool))
        self._histogram.add(scores[masks], np.ones(len(region_N), dtype=bool), 1 / area_R[region_N])

    def merge(self, other: "StreamingAUPRO") -> None:
        """Add the data of another AUPRO of the same resolution (from another rank or worker)."""
        self._histogram.merge(other._histogram)

    def compute(self) -> float:
        """Return the area, divided by the limit, in [0, 1].

        Raises:
            ValueError: no defective region, or no defect-free pixel so far.
        """
        bins = self._histogram.descending()
        negatives_K, positives_K = bins.negatives_K, bins.positives_K
        negatives, regions = negatives_K.sum(), positives_K.sum()
        if not (negatives and regions):
            seen = f"{negatives:.0f} defect-free pixels and {regions:.0f} regions"
            raise ValueError(
                f"AUPRO needs defect-free pixels and defective regions; got {seen}: report it as not available"
            )
        rate_K = np.concatenate([[0.0], negatives_K.cumsum() / negatives])
        overlap_K = np.concatenate([[0.0], positives_K.cumsum() / regions])
        end = int(np.searchsorted(rate_K, self.limit))  # the first point at the limit or beyond it
        share = (self.limit - rate_K[end - 1]) / (rate_K[end] - rate_K[end - 1])
        at_limit = overlap_K[end - 1] + share * (overlap_K[end] - overlap_K[end - 1])
        # a bin's scores, in whatever order, raise both: between the corners of a rectangle around the diagonal
        off_K = np.where(bins.mixed_K, np.diff(rate_K) * np.diff(overlap_K) / 2, 0.0)[:end] / self.limit
        if off_K.sum() > DOUBT:
            warnings.warn(
                f"{shared_mass(bins):.0%} of the mass shares a bin with different scores, so AUPRO may be off by "
                f"{off_K.sum():.4f}: use exact=True or more bits, or pass logits instead of probabilities",
                stacklevel=2,
            )
        rates, overlaps = np.append(rate_K[:end], self.limit), np.append(overlap_K[:end], at_limit)
        return float(np.trapezoid(overlaps, rates) / self.limit)


def _regions(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The eight-connected region, numbered from 1 over all masks, of each defective pixel in turn."""
    try:
        from scipy.ndimage import label
    except ImportError as error:
        raise ImportError(
            "AUPRO finds connected regions with scipy, which is not installed: pip install scipy"
        ) from error
    masks_BHW = masks.reshape(-1, *masks.shape[-2:])
    region_N: NDArray[np.int64] = label(masks_BHW, structure=NEIGHBOURS)[0][masks_BHW]
    return region_N
