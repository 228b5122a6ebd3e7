"""Image and pixel metrics of one class, with intervals; and their mean over classes.

B images of a batch, N of a class, S resamples of them; K scores from the highest down; H and W pixels of a map.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from aaclip.scoring.sketches import ImageSketch, pool_sketches
from clip_common.metrics import StreamingAUPRO, StreamingCurve
from clip_common.metrics.bootstrap import draw_resamples, percentile_intervals
from clip_common.metrics.histogram import as_labels, as_scores

Floats = NDArray[np.float64]

METRICS = (
    "image/auroc",
    "image/ap",
    "image/f1_max",
    "pixel/auroc",
    "pixel/ap",
    "pixel/f1_max",
    "pixel/aupro",
)
LIMIT = 0.3
"""False positive rate up to which AUPRO integrates."""
ARRAYS = 16
"""Number of arrays as wide as a resample that exist at once; chunks of resamples are that much smaller."""


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

    def update(
        self,
        scores_B: Tensor | ArrayLike,
        anomalous_B: Tensor | ArrayLike,
        maps_BHW: Tensor | ArrayLike | None = None,
        masks_BHW: Tensor | ArrayLike | None = None,
    ) -> None:
        """Add images.

        Args:
            scores_B: Score of each image, higher for anomalous.
            anomalous_B: 1 if the image shows a defect.
            maps_BHW: Score maps, any floats, higher for defects. Prefer logits to probabilities, which crowd at 1.
            masks_BHW: 1 on defects, 0 elsewhere, so 0 everywhere for a normal image; None if the set has no masks.

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

    def intervals(self, samples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Return the middle 95 % (low, high) of `resample`, for each metric that exists."""
        drawn = self.resample(samples=samples, seed=seed)
        return percentile_intervals({name: values_S[np.isfinite(values_S)] for name, values_S in drawn.items()})

    def resample(self, *, samples: int = 1000, seed: int = 0) -> dict[str, Floats]:
        """Return (S,) bootstrap values of each metric that exists; images are drawn, each with all its pixels.

        Normal and anomalous images are drawn separately, as many as there are of each, so that every resample has both.
        Image metrics are exact. Pixel metrics are computed from the sketches, pooled into 1,024 steps. Their difference
        to the value of `compute` is added to every resample, which leaves errors of about 0.001 in AUROC and AUPRO and
        0.003 in AP and F1. A resample without a defective pixel gives NaN; empty masks of anomalous images lead to it.

        Args:
            samples: S.
            seed: Of the draw. Use different ones for classes whose resamples are averaged.
        """
        values = self.compute()
        found: dict[str, Floats] = {}
        if values["image/auroc"] is not None:
            scores_N, anomalous_N = self._images()
            found |= _stack(
                _of_images(scores_N, anomalous_N, weights_SN)
                for weights_SN in _draws(anomalous_N, samples=samples, seed=seed, width=len(scores_N))
            )
        if values["pixel/auroc"] is not None:
            anomalous_N = np.array([sketch.anomalous for sketch in self._sketches])
            mass_NK3 = pool_sketches(self._sketches)
            drawn = _stack(
                _of_pixels(mass_NK3, weights_SN)
                for weights_SN in _draws(anomalous_N, samples=samples, seed=seed, width=mass_NK3[0].size)
            )
            for name, whole_1 in _of_pixels(mass_NK3, np.ones((1, len(mass_NK3)), np.int64)).items():
                found[name] = np.clip(drawn[name] + (np.float64(values[name]) - whole_1), 0, 1)
        return found

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


def _draws(anomalous_N: NDArray[np.bool_], *, samples: int, seed: int, width: int) -> Iterator[NDArray[np.int64]]:
    """Yield chunks of (S, N): how often each image was drawn; normal and anomalous ones are drawn separately."""
    groups = [np.flatnonzero(anomalous_N == label) for label in (False, True)]
    seeds = np.random.SeedSequence(seed).generate_state(2).tolist()  # the two draws must be independent
    drawn = [
        draw_resamples(len(rows), samples=samples, seed=own, width=ARRAYS * width)
        for rows, own in zip(groups, seeds, strict=True)
        if len(rows)
    ]
    order = np.argsort(np.concatenate(groups))
    for chunks in zip(*drawn, strict=True):
        yield np.concatenate(chunks, axis=1)[:, order]


def _of_images(
    scores_N: NDArray[Any], anomalous_N: NDArray[np.bool_], weights_SN: NDArray[np.int64]
) -> dict[str, Floats]:
    order_N = np.argsort(-scores_N, kind="stable")
    begins_K = np.flatnonzero(np.diff(scores_N[order_N], prepend=np.nan) != 0)  # equal scores are one step
    positives_SK, negatives_SK = (
        np.add.reduceat(weights_SN[:, order_N] * (anomalous_N[order_N] == label), begins_K, axis=1)
        for label in (True, False)
    )
    return {f"image/{name}": values_S for name, values_S in _curves(negatives_SK, positives_SK).items()}


def _of_pixels(mass_NK3: Floats, weights_SN: NDArray[np.int64]) -> dict[str, Floats]:
    drawn_SK3 = np.tensordot(weights_SN.astype(np.float64), mass_NK3, axes=1)
    negatives_SK, positives_SK, overlap_SK = np.moveaxis(drawn_SK3, -1, 0)
    values = _curves(negatives_SK, positives_SK) | {"aupro": _aupro(negatives_SK, overlap_SK)}
    return {f"pixel/{name}": values_S for name, values_S in values.items()}


def _curves(negatives_SK: Floats, positives_SK: Floats) -> dict[str, Floats]:
    """Compute `StreamingCurve.compute` for S sets at once."""
    alarms_SK, hits_SK = negatives_SK.cumsum(1), positives_SK.cumsum(1)
    said_SK = np.maximum(alarms_SK + hits_SK, 1)  # avoids 0/0 before the first drawn pixel
    negatives_S, positives_S = _sum(negatives_SK), _sum(positives_SK)
    return {
        "auroc": (negatives_SK * (hits_SK - positives_SK / 2)).sum(1) / (negatives_S * positives_S),
        "ap": (positives_SK * hits_SK / said_SK).sum(1) / positives_S,
        "f1_max": (2 * hits_SK / (said_SK + positives_S[:, None])).max(1),
    }


def _aupro(negatives_SK: Floats, overlap_SK: Floats) -> Floats:
    """Compute `StreamingAUPRO.compute` for S sets at once: trapezoids, of which the one across the limit is cut."""
    width_SK, height_SK = (mass_SK / _sum(mass_SK)[:, None] for mass_SK in (negatives_SK, overlap_SK))
    left_SK, low_SK = width_SK.cumsum(1) - width_SK, height_SK.cumsum(1) - height_SK
    cut_SK = np.clip(LIMIT - left_SK, 0, width_SK)
    share_SK = np.divide(cut_SK, width_SK, out=np.zeros_like(width_SK), where=width_SK > 0)
    return (cut_SK * (low_SK + share_SK * height_SK / 2)).sum(1) / LIMIT


def _sum(mass_SK: Floats) -> Floats:
    """Return the sum of each row; NaN if it is zero, because no metric exists then."""
    total_S = mass_SK.sum(1)
    return np.where(total_S > 0, total_S, np.nan)


def _stack(chunks: Iterator[dict[str, Floats]]) -> dict[str, Floats]:
    parts = list(chunks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
