"""Bootstrap over the images of a class: intervals of one detector's metrics, and differences of two detectors.

N images of a class, S resamples of them, K scores from the highest down.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aaclip.scoring.sketches import ImageSketch, pool_sketches
from clip_common.metrics import Paired
from clip_common.metrics.bootstrap import (
    concatenate_chunks,
    draw_resamples,
    paired_difference,
    percentile_intervals,
)

Floats = NDArray[np.float64]
Resamples = Mapping[str, Mapping[str, Floats]]
"""Class → metric → (S,) values."""

LIMIT = 0.3
"""False positive rate up to which AUPRO integrates."""
ARRAYS = 16
"""Number of arrays as wide as a resample that exist at once; chunks of resamples are that much smaller."""


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of a class's images by one detector, and what a bootstrap needs of its maps: 8 KB an image at most.

    Attributes:
        values: Metrics of all images; None if the class lacks what the metric needs.
        names: File of each image.
        scores_N: Score of each image, float32.
        anomalous_N: Its label.
        sketches: Of the images whose mask is known, in the same order.
    """

    values: Mapping[str, float | None]
    names: tuple[str, ...]
    scores_N: NDArray[np.float32]
    anomalous_N: NDArray[np.bool_]
    sketches: tuple[ImageSketch, ...]

    def intervals(self, *, samples: int = 1000, seed: int | Sequence[int] = 0) -> dict[str, tuple[float, float]]:
        """Return the middle 95 % (low, high) of `resample`, for each metric that exists."""
        drawn = self.resample(samples=samples, seed=seed)
        return percentile_intervals({name: values_S[np.isfinite(values_S)] for name, values_S in drawn.items()})

    def resample(self, *, samples: int = 1000, seed: int | Sequence[int] = 0) -> dict[str, Floats]:
        """Return (S,) bootstrap values of each metric that exists; images are drawn, each with all its pixels.

        Normal and anomalous images are drawn separately, as many as there are of each, so that every resample has both.
        Image metrics are exact. Pixel metrics are computed from the sketches, pooled into 1,024 steps. Their difference
        to the value of the whole class is added to every resample, which leaves errors of about 0.001 in AUROC and
        AUPRO and 0.003 in AP and F1. A resample without a defective pixel gives NaN; empty masks of anomalous images
        lead to it. Two detectors that scored the same images see the same draws.

        Args:
            samples: S.
            seed: Of the draw. Use different ones for classes whose resamples are averaged.
        """
        found: dict[str, Floats] = {}
        if self.values["image/auroc"] is not None:
            found |= concatenate_chunks(
                _of_images(self.scores_N, self.anomalous_N, weights_SN)
                for weights_SN in draw_images(self.anomalous_N, samples=samples, seed=seed, width=len(self.scores_N))
            )
        if self.values["pixel/auroc"] is not None:
            anomalous_N = np.array([sketch.anomalous for sketch in self.sketches])
            mass_NK3 = pool_sketches(self.sketches)
            drawn = concatenate_chunks(
                _of_pixels(mass_NK3, weights_SN)
                for weights_SN in draw_images(anomalous_N, samples=samples, seed=seed, width=mass_NK3[0].size)
            )
            for name, whole_1 in _of_pixels(mass_NK3, np.ones((1, len(mass_NK3)), np.int64)).items():
                found[name] = np.clip(drawn[name] + (np.float64(self.values[name]) - whole_1), 0, 1)
        return found


@dataclass(frozen=True)
class Differences:
    """Differences of two detectors on the same images, by metric; a metric that either lacks is absent.

    Attributes:
        classes: Of each class.
        mean: Of the mean over the classes that have the metric.
    """

    classes: dict[str, dict[str, Paired]]
    mean: dict[str, Paired]


def resample_classes(scores: Mapping[str, ClassScores], *, samples: int = 1000, seed: int = 0) -> Resamples:
    """Return the resamples of each class, drawn independently of the other classes.

    Args:
        scores: By class.
        samples: S.
        seed: Of all draws.
    """
    return {
        name: scores[name].resample(samples=samples, seed=(seed, number)) for number, name in enumerate(sorted(scores))
    }


def interval_of_mean(
    scores: Mapping[str, ClassScores], *, samples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each metric's mean over the classes that have it."""
    drawn = resample_classes(scores, samples=samples, seed=seed)
    return percentile_intervals({name: mean_S[np.isfinite(mean_S)] for name, mean_S in average_metrics(drawn).items()})


def compare_scores(
    ours: Mapping[str, ClassScores], theirs: Mapping[str, ClassScores], *, samples: int = 1000, seed: int = 0
) -> Differences:
    """Compare two detectors on the same images with a paired bootstrap: both see the same draws of images.

    Args:
        ours, theirs: Scores by class. Differences are ours minus theirs.
        samples: Number of resamples. Those for which a metric does not exist are left out of its interval.
        seed: Of all draws.

    Raises:
        ValueError: They scored different images.
    """
    observed, difference = resample_differences(ours, theirs, samples=samples, seed=seed)
    return Differences(
        classes={name: _pair(observed[name], difference[name], seed=seed) for name in observed},
        mean=_pair(average_metrics(observed), average_metrics(difference), seed=seed),
    )


def resample_differences(
    ours: Mapping[str, ClassScores], theirs: Mapping[str, ClassScores], *, samples: int = 1000, seed: int = 0
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Floats]]]:
    """Return the differences of all images, and (S,) of each resample, by class and metric; see `compare_scores`."""
    check_same_scored(ours, theirs)
    drawn, base = (resample_classes(scores, samples=samples, seed=seed) for scores in (ours, theirs))
    observed: dict[str, dict[str, float]] = {}
    difference: dict[str, dict[str, Floats]] = {}
    for name, own in drawn.items():
        difference[name] = {metric: own[metric] - base[name][metric] for metric in own}
        pairs = {metric: (ours[name].values[metric], theirs[name].values[metric]) for metric in own}
        observed[name] = {
            metric: mine - other for metric, (mine, other) in pairs.items() if mine is not None and other is not None
        }
    return observed, difference


def compare_runs(
    pairs: Sequence[tuple[Mapping[str, ClassScores], Mapping[str, ClassScores]]],
    *,
    seeds: Sequence[int],
    samples: int = 1000,
    judged: Sequence[str] = (),
) -> dict[str, Paired]:
    """Compare two detectors that were each trained several times, over draws of images and of trainings.

    Args:
        pairs: Scores by class of each training of ours, and of theirs on the same images. Differences are ours minus
            theirs, of means over the classes.
        seeds: Of the draws of images, one for each pair: the same number for pairs that scored the same images, so
            that these are drawn alike.
        samples: Number of resamples. Those for which a metric does not exist are left out of its interval.
        judged: Metrics whose mean gets a difference too, under the name `judged`.

    Returns:
        Difference by metric, of the metrics that all pairs have.
    """
    found = [
        resample_differences(ours, theirs, samples=samples, seed=seed)
        for (ours, theirs), seed in zip(pairs, seeds, strict=True)
    ]
    means = [(average_metrics(observed), average_metrics(drawn)) for observed, drawn in found]
    shared = [metric for metric in means[0][0] if all(metric in observed for observed, _ in means)]
    if judged and set(judged) <= set(shared):
        shared.append("judged")
        for of in (side for both in means for side in both):
            of["judged"] = np.mean([of[metric] for metric in judged], axis=0)
    differences = {}
    for metric in shared:
        difference_RS = np.stack([drawn[metric] for _, drawn in means])
        finite_S = np.isfinite(difference_RS).all(axis=0)
        observed_R = [float(observed[metric]) for observed, _ in means]
        differences[metric] = paired_difference(observed_R, difference_RS[:, finite_S], seed=0)
    return differences


def _pair(observed: Mapping[str, float], difference: Mapping[str, Floats], *, seed: int) -> dict[str, Paired]:
    """Return the paired difference of each metric, over the resamples in which it exists."""
    return {
        metric: paired_difference([observed[metric]], of_S[None, np.isfinite(of_S)], seed=seed)
        for metric, of_S in difference.items()
    }


def average_metrics(by_class: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return each metric's mean over the classes that have it, of numbers or of resamples."""
    metrics = dict.fromkeys(metric for of in by_class.values() for metric in of)
    return {metric: np.mean([of[metric] for of in by_class.values() if metric in of], axis=0) for metric in metrics}


def check_same_scored(ours: Mapping[str, ClassScores], theirs: Mapping[str, ClassScores]) -> None:
    """Raise ValueError unless two detectors scored the same images of the same classes, in the same order."""
    images = [{name: scores.names for name, scores in side.items()} for side in (ours, theirs)]
    if images[0] != images[1]:
        files = [{file for names in side.values() for file in names} for side in images]
        raise ValueError(
            f"a paired comparison needs scores of the same images in the same order: of {len(files[0] | files[1])}, "
            f"{len(files[0] ^ files[1])} were scored by one detector alone: score both on the same set"
        )


def draw_images(
    anomalous_N: NDArray[np.bool_], *, samples: int, seed: int | Sequence[int], width: int
) -> Iterator[NDArray[np.int64]]:
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
