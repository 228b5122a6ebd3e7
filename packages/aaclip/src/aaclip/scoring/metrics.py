"""Image and pixel metrics of one class, with intervals; and their mean over classes.

B images of a batch, N of a class; H and W pixels of a map.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from aaclip.scoring.bootstrap import LIMIT, ClassScores
from aaclip.scoring.sketches import ImageSketch
from clip_common.metrics import StreamingAUPRO, StreamingCurve
from clip_common.metrics.histogram import as_labels, as_scores

METRICS = (
    "image/auroc",
    "image/ap",
    "image/f1_max",
    "pixel/auroc",
    "pixel/ap",
    "pixel/f1_max",
    "pixel/aupro",
)


class ClassMetrics:
    """Image and pixel metrics of one class, batch by batch.

    Pixel curves take constant memory (`clip_common.metrics`: histograms of 2^20 bins). For the intervals a sketch of at
    most 512 points is kept of each image, 8 KB whatever its size (`aaclip.scoring.sketches`).

    Args:
        pixel: Score maps too; otherwise the maps and masks of `update` are ignored.
        exact: Distinguish all pixel scores; memory then grows with the pixels. Image scores are always distinguished.

    Example:
        >>> metrics = ClassMetrics()
        >>> for batch in batches:
        ...     metrics.update(scores_B, batch.anomalous_B, maps_BHW, batch.masks_BHW)
        >>> metrics.compute()["pixel/aupro"], metrics.intervals()["pixel/aupro"]
    """

    def __init__(self, *, pixel: bool = True, exact: bool = False) -> None:
        self.pixel = pixel
        self.exact = exact
        self._scores: list[NDArray[np.float32]] = []
        self._anomalous: list[NDArray[np.bool_]] = []
        self._curve = StreamingCurve(exact=exact)
        self._aupro = StreamingAUPRO(limit=LIMIT, exact=exact)
        self._sketches: list[ImageSketch] = []
        self._names: list[str] = []

    def update(
        self,
        scores_B: Tensor | ArrayLike,
        anomalous_B: Tensor | ArrayLike,
        maps_BHW: Tensor | ArrayLike | None = None,
        masks_BHW: Tensor | ArrayLike | None = None,
        *,
        names_B: Sequence[str] = (),
    ) -> None:
        """Add images.

        Args:
            scores_B: Score of each image, higher for anomalous.
            anomalous_B: 1 if the image shows a defect.
            maps_BHW: Score maps, any floats, higher for defects. Prefer logits to probabilities, which crowd at 1.
            masks_BHW: 1 on defects, 0 elsewhere, so 0 everywhere for a normal image; None if the set has no masks.
            names_B: Their files, by which a comparison with another detector knows them.

        Raises:
            ValueError: A NaN, a label that is neither 0 nor 1, shapes that do not fit. Nothing is added then.
        """
        scores, maps = as_scores(scores_B), None
        anomalous = as_labels(anomalous_B, shape=scores.shape)
        if self.pixel and masks_BHW is not None:
            maps = as_scores([] if maps_BHW is None else maps_BHW)
            masks = as_labels(masks_BHW, shape=maps.shape)
            if maps.ndim != 3 or len(maps) != len(scores):
                raise ValueError(f"expected a map (H, W) for each of {len(scores)} scores, got the shape {maps.shape}")
        self._scores.append(scores)
        self._anomalous.append(anomalous)
        self._names += names_B
        if maps is not None:
            self._curve.update(maps, masks)
            self._aupro.update(maps, masks)
            for map_HW, mask_HW, label in zip(maps, masks, anomalous, strict=True):
                self._sketches.append(ImageSketch.of(map_HW, mask_HW, anomalous=bool(label), exact=self.exact))

    def rescore(self, scores_N: ArrayLike) -> None:
        """Replace the scores of the images, in the order in which the images were added.

        For scores that are relative to all images of the class, and so unknown before the last one.
        """
        scores = as_scores(scores_N)
        assert scores.shape == (sum(map(len, self._scores)),)
        self._scores = [scores]

    def compute(self) -> dict[str, float | None]:
        """Return a value in [0, 1] for each of `METRICS`, or None if the class lacks what the metric needs.

        Image metrics need a normal and an anomalous image, pixel metrics a pixel on a defect and one off it.
        """
        values: dict[str, float | None] = dict.fromkeys(METRICS)
        scores_N, anomalous_N = self._images()
        if anomalous_N.any() and not anomalous_N.all():
            curve = StreamingCurve(exact=True)
            curve.update(scores_N, anomalous_N)
            image = curve.compute()
            values |= {"image/auroc": image.auroc, "image/ap": image.ap, "image/f1_max": image.f1_max}
        if any(sketch.positives for sketch in self._sketches) and any(sketch.negatives for sketch in self._sketches):
            pixel = self._curve.compute()
            values |= {"pixel/auroc": pixel.auroc, "pixel/ap": pixel.ap, "pixel/f1_max": pixel.f1_max}
            values["pixel/aupro"] = self._aupro.compute()
        return values

    def scores(self) -> ClassScores:
        """Return the scores of the images added so far, for a bootstrap."""
        scores_N, anomalous_N = self._images()
        return ClassScores(self.compute(), tuple(self._names), scores_N, anomalous_N, tuple(self._sketches))

    def intervals(self, samples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return the middle 95 % (low, high) of the bootstrap of each metric that exists; see `ClassScores`."""
        return self.scores().intervals(samples=samples, seed=seed)

    def _images(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        return (
            np.concatenate([np.zeros(0, np.float32), *self._scores]),
            np.concatenate([np.zeros(0, np.bool_), *self._anomalous]),
        )


class Mean(NamedTuple):
    """A metric's mean over the `classes` classes that have it; None if no class has it."""

    value: float | None
    classes: int


def average_classes(classes: Mapping[str, Mapping[str, float | None]]) -> dict[str, Mean]:
    """Return each metric's mean over the classes that have it, and their number."""
    means = {}
    for name in dict.fromkeys(name for values in classes.values() for name in values):
        present = [value for values in classes.values() if (value := values.get(name)) is not None]
        means[name] = Mean(value=float(np.mean(present)) if present else None, classes=len(present))
    return means
