"""A sketch of an image for the bootstrap of pixel metrics: its pixels' scores, summarised in a few points.

H and W pixels of a map, K points from the highest score down, N images, G steps. A point has three masses: its pixels
off defects, its pixels on defects, and the share of a region that these cover, summed over regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aaclip.detector.regions import label_regions
from clip_common.metrics.histogram import ScoreHistogram

POINTS = 512
"""Most points of an image: 8 KB."""
STEPS = 1024
"""Steps of the pooled curve."""
BITS = 18
"""Bits of a score (`ScoreHistogram`): two fewer than a curve uses take a sixth of the time."""


@dataclass(frozen=True)
class ImageSketch:
    """The scores of one image, and the masses at each.

    Attributes:
        anomalous: The image's label.
        scores_K: In falling order, float32.
        mass_K3: float32.
    """

    anomalous: bool
    scores_K: NDArray[np.float32]
    mass_K3: NDArray[np.float32]

    @classmethod
    def of(
        cls, map_HW: NDArray[np.float32], mask_HW: NDArray[np.bool_], *, anomalous: bool, exact: bool = False
    ) -> "ImageSketch":
        """Sketch a map and its mask.

        If there are more scores than points, neighbours are merged so that a point holds about 1/512 of the image's
        mass, and at most about 4/512 of its defects: a small defect is resolved as finely as a large one.

        Args:
            map_HW: Scores, no NaN.
            mask_HW: True on defects.
            anomalous: The image's label.
            exact: Distinguish all scores before neighbours are merged, instead of 2^18 bins of them.
        """
        scores_K, negatives_K, positives_K = _masses(map_HW, mask_HW, exact=exact)
        overlap_K = positives_K
        if mask_HW.any():
            regions_HW = label_regions(mask_HW)
            area_R = np.bincount(regions_HW.ravel())
            overlap_K = _masses(map_HW, mask_HW, weights_HW=1 / area_R[regions_HW], exact=exact)[2]
        mass_K3 = np.stack([negatives_K, positives_K, overlap_K], axis=1)
        begins = _begins(mass_K3, POINTS)
        return cls(anomalous, scores_K[begins], np.add.reduceat(mass_K3, begins).astype(np.float32))

    @property
    def negatives(self) -> float:
        """Number of pixels off defects."""
        return float(self.mass_K3[:, 0].sum())

    @property
    def positives(self) -> float:
        """Number of pixels on defects."""
        return float(self.mass_K3[:, 1].sum())


def pool_sketches(sketches: Sequence[ImageSketch]) -> NDArray[np.float64]:
    """Return (N, G, 3) masses of each image in common steps, the highest scores first, float64.

    A step holds about 1/1024 of the mass of all images together. With fewer scores than that, each is a step.
    """
    scores_K = np.concatenate([sketch.scores_K for sketch in sketches])
    mass_K3 = np.concatenate([sketch.mass_K3 for sketch in sketches])
    image_K = np.repeat(np.arange(len(sketches)), [len(sketch.scores_K) for sketch in sketches])
    falling_U, place_K = np.unique(-scores_K, return_inverse=True)
    total_U3 = np.zeros((len(falling_U), 3))
    np.add.at(total_U3, place_K, mass_K3)
    begins = _begins(total_U3, STEPS)
    step_K = np.searchsorted(begins, place_K, side="right") - 1
    mass_NG3 = np.zeros((len(sketches), len(begins), 3))
    np.add.at(mass_NG3, (image_K, step_K), mass_K3)
    return mass_NG3


def _masses(
    map_HW: NDArray[np.float32],
    mask_HW: NDArray[np.bool_],
    *,
    exact: bool,
    weights_HW: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    histogram = ScoreHistogram(bits=BITS, exact=exact)
    histogram.add(map_HW.ravel(), mask_HW.ravel(), None if weights_HW is None else weights_HW.ravel())
    bins = histogram.descending()
    return bins.lowest_K, bins.negatives_K, bins.positives_K


def _begins(mass_K3: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the first row of each of about `count` runs of rows, in which the curves rise by about the same amount.

    A run holds about an equal share of the three masses, and of the logarithm of the pixels off defects: defects are
    few, so that the first false alarms decide the precision.
    """
    if len(mass_K3) <= count:
        return np.arange(len(mass_K3))
    logarithm_K = np.diff(np.log1p(mass_K3[:, 0].cumsum()), prepend=0)
    parts_K4 = np.concatenate([mass_K3, logarithm_K[:, None]], axis=1)
    total_4 = parts_K4.sum(axis=0)
    share_K = (parts_K4 / np.where(total_4 > 0, total_4, 1)).sum(axis=1)
    before_K = (share_K.cumsum() - share_K) / share_K.sum()
    return np.flatnonzero(np.diff(np.floor(before_K * count), prepend=-1))
