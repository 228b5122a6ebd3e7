"""From maps to an image's score, and from scores of normal images to a threshold with a known false positive rate.

B, N images; H and W pixels of a map. A score at or above the threshold means anomalous.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clip_common.metrics import StreamingCurve
from clip_common.metrics.histogram import as_labels, as_scores

Floats = NDArray[np.float64]

ROUNDING = 1e-9
"""Added before a product is rounded down to a count, because 0.29 · 100 is 28.999…."""
NOISE = 1e-5
"""Distance of a threshold above a score: a picture's score changes by about 1e-7 with the rest of its batch."""


@dataclass(frozen=True)
class Threshold:
    """Score from which an image is anomalous.

    Attributes:
        value: Scores from here up are anomalous, whether they are stored in 32 or in 64 bits.
        method: How it was found; `given`: by the user.
        target_fpr: Intended false positive rate; None for methods without one.
        images: Images it was found on.
        tile: Side in pixels of the tiles it is for; None: whole pictures.
    """

    value: float
    method: Literal["normal_quantile", "conformal", "best_f1", "given"]
    target_fpr: float | None = None
    images: int = 0
    tile: int | None = None

    def describe(self) -> str:
        """Return where the threshold comes from, in half a sentence."""
        images = f"{self.images:,} images"
        rate = "" if self.target_fpr is None else f"{100 * self.target_fpr:g} %"
        return {
            "normal_quantile": f"at most {rate} of {images} that are normal reach it",
            "conformal": f"a normal picture reaches it with a probability of at most {rate}, judged by {images}",
            "best_f1": f"the best F1 on {images}",
            "given": "as given",
        }[self.method]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Threshold":
        """Build from what `to_dict` returned."""
        return cls(**values)


def choose_threshold(own: Threshold | None, given: float | None, *, tile: int | None) -> Threshold | None:
    """Return the threshold for verdicts: the given one, else the detector's own; None: no verdicts.

    Raises:
        ValueError: The detector's own was calibrated with other tiles.
    """
    if given is not None:
        return Threshold(given, method="given", tile=tile)
    if own is not None and own.tile != tile:
        raise ValueError(
            f"the threshold was calibrated with tile={own.tile}, not {tile}: calibrate again, or give a threshold"
        )
    return own


def normal_quantile(scores_N: Tensor | ArrayLike, target_fpr: float) -> Threshold:
    """Return the threshold that at most a share `target_fpr` of these normal scores reach.

    With k = ⌊target_fpr · N⌋ it is 1e-5 above the (k+1)-th highest score, which is more than that score changes from
    one batch to another. No score tied with it reaches the threshold, so ties lower the rate and never raise it. The
    rate is that of these images; for a rate that is promised for the next image, see `conformal`.

    Raises:
        ValueError: No score, a NaN, or a rate outside [0, 1).
    """
    if not 0 <= target_fpr < 1:
        raise ValueError(f"target_fpr={target_fpr}: expected a share of normal images, from 0 to below 1")
    scores = _check_scores(scores_N)
    value = _place_above(scores, allowed=floor(target_fpr * len(scores) + ROUNDING))
    return Threshold(value, method="normal_quantile", target_fpr=target_fpr, images=len(scores))


def conformal(scores_N: Tensor | ArrayLike, target_fpr: float) -> Threshold:
    """Return the threshold that the next normal image reaches with a probability of at most `target_fpr`.

    Split-conformal prediction (Vovk et al., 2005): just above the ⌈(N+1)(1 − target_fpr)⌉-th lowest of N normal scores.
    This holds for any distribution and any N if these images and the next are exchangeable and none was trained on.

    Raises:
        ValueError: Fewer than 1/target_fpr − 1 scores, a NaN, or a rate outside (0, 1).
    """
    if not 0 < target_fpr < 1:
        raise ValueError(f"target_fpr={target_fpr}: expected a probability between 0 and 1")
    scores = _check_scores(scores_N)
    allowed = floor(target_fpr * (len(scores) + 1) + ROUNDING) - 1
    if allowed < 0:
        needed = ceil(1 / target_fpr - 1 - ROUNDING)
        raise ValueError(
            f"target_fpr={target_fpr}: {len(scores)} normal images cannot promise it, {needed} can: give more images, "
            "a higher rate, or take normal_quantile, which promises nothing"
        )
    return Threshold(
        _place_above(scores, allowed=allowed), method="conformal", target_fpr=target_fpr, images=len(scores)
    )


def best_f1(scores_N: Tensor | ArrayLike, anomalous_N: Tensor | ArrayLike) -> Threshold:
    """Return the threshold with the highest F1 on these images: halfway between the scores on its two sides.

    Raises:
        ValueError: Not both normal and anomalous images, a NaN, or unequal lengths.
    """
    scores, curve = as_scores(scores_N), StreamingCurve(exact=True)
    curve.update(scores, anomalous_N)
    lowest = np.float32(curve.compute().threshold)
    below = np.max(scores, where=scores < lowest, initial=-np.inf)
    with np.errstate(over="ignore"):  # the float below the lowest is -infinity
        other = below if np.isfinite(below) else np.nextafter(lowest, np.float32(-np.inf))
    return Threshold((float(lowest) + float(other)) / 2, method="best_f1", images=len(scores))


@dataclass(frozen=True)
class Logistic:
    """An image's score: sigmoid(a·cls + b·top + c).

    Attributes:
        a: Weight of the classification, `cls`; never negative after a fit.
        b: Weight of the map, `top`: the `top_mean` of its patches; never negative after a fit.
        c: Offset.
        images: Images it was fitted on; 0 if it was not.
    """

    a: float
    b: float
    c: float
    images: int = 0

    def __call__(self, cls_B: Tensor, top_B: Tensor) -> Tensor:
        """Return (B,) scores from 0 to 1, float64."""
        return self.logits(cls_B, top_B).sigmoid()

    def logits(self, cls_B: Tensor, top_B: Tensor) -> Tensor:
        """Return (B,) scores before the sigmoid, float64: same order, and still apart where scores round to 1."""
        return self.a * cls_B.double() + self.b * top_B.double() + self.c

    @classmethod
    def fit(cls, cls_N: Tensor | ArrayLike, top_N: Tensor | ArrayLike, anomalous_N: Tensor | ArrayLike) -> "Logistic":
        """Fit a logistic regression on labelled images; normal and anomalous ones have the same total weight.

        So 0.5 means "as likely normal as anomalous", whatever the share of either in training. Both inputs are scaled
        to unit deviation first, so that the (weak, C = 1) penalty treats them alike. Both should rise with defects: an
        input whose weight is negative only corrects the other one on these images, and is left out.

        Raises:
            ValueError: Only normal or only anomalous images; or neither input is higher for anomalous images.
        """
        inputs_N2 = np.stack([as_scores(cls_N), as_scores(top_N)], axis=1).astype(np.float64)
        anomalous = as_labels(anomalous_N, shape=(len(inputs_N2),))
        count = int(anomalous.sum())
        if count in (0, len(anomalous)):
            raise ValueError(
                f"a score is fitted on normal and anomalous images, got {len(anomalous) - count} and {count}: give "
                "both, or keep the unfitted score"
            )
        both = cls._regression(inputs_N2, anomalous, columns=[0, 1])
        fits = [both] if both.rises else [cls._regression(inputs_N2, anomalous, columns=[column]) for column in (0, 1)]
        fits = [fit for fit in fits if fit.rises]
        if not fits:
            raise ValueError(
                f"neither the classification nor the map is higher for the {count} anomalous images than for the "
                f"{len(anomalous) - count} normal ones: train longer, or keep the unfitted score"
            )
        return min(fits, key=lambda fit: fit._loss(inputs_N2, anomalous))

    @classmethod
    def _regression(cls, inputs_N2: Floats, anomalous: NDArray[np.bool_], *, columns: list[int]) -> "Logistic":
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        scaler, regression = StandardScaler(), LogisticRegression(class_weight="balanced")
        regression.fit(scaler.fit_transform(inputs_N2[:, columns]), anomalous)
        weights_2 = np.zeros(2)
        weights_2[columns] = regression.coef_[0] / scaler.scale_
        offset = regression.intercept_[0] - weights_2[columns] @ scaler.mean_
        return cls(a=float(weights_2[0]), b=float(weights_2[1]), c=float(offset), images=len(anomalous))

    @property
    def rises(self) -> bool:
        """True if a higher input never lowers the score, and some input raises it."""
        return min(self.a, self.b) >= 0 and max(self.a, self.b) > 0

    def _loss(self, inputs_N2: Floats, anomalous: NDArray[np.bool_]) -> float:
        from sklearn.metrics import log_loss
        from sklearn.utils import compute_sample_weight

        return float(
            log_loss(
                anomalous,
                self(*torch.from_numpy(inputs_N2).T).numpy(),
                sample_weight=compute_sample_weight("balanced", anomalous),
            )
        )

    def describe(self) -> str:
        """Return the formula with its numbers, and where they come from."""
        origin = f"fitted on {self.images:,} images" if self.images else "not fitted: the untrained weights"
        return f"sigmoid({self.a:.4g} · classification + {self.b:.4g} · map {self.c:+.4g}), {origin}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Logistic":
        """Build from what `to_dict` returned."""
        return cls(**values)


UNFITTED = Logistic(a=50.0, b=0.5, c=0.0)
"""Image score before any fit: half the image's own logit plus half the mean of the map's hottest hundredth."""


def top_mean(maps_BHW: Tensor, share: float = 0.01) -> Tensor:
    """Return the (B,) mean of the highest `share` of each map's pixels, at least one of them.

    Raises:
        ValueError: A share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a share of a map's pixels, above 0 to 1")
    pixels_BP = maps_BHW.flatten(start_dim=1)
    count = max(1, floor(share * pixels_BP.shape[1] + ROUNDING))
    return pixels_BP.topk(count, dim=1).values.mean(dim=1)


def compute_relative_scores(
    abnormal_N: ArrayLike, peaks_N: ArrayLike, *, lowest: float, domain: Literal["industrial", "medical"]
) -> Floats:
    """Return (N,) image scores of the released code, relative to all images of a class: one image alone has none.

    Cosines and maps are each scaled to 0..1 over the class. An industrial image scores half its map's peak plus half
    its cosine, a medical one the peak alone. Values that do not vary count as 0.

    Args:
        abnormal_N: Cosine of each image to "abnormal".
        peaks_N: Highest value of each image's map.
        lowest: Lowest value of all maps.
        domain: Which of the two.
    """
    peaks, cosines = np.asarray(peaks_N, np.float64), np.asarray(abnormal_N, np.float64)
    stretched_N = _scale(peaks, lowest=lowest)
    if domain == "medical":
        return stretched_N
    return 0.5 * stretched_N + 0.5 * _scale(cosines, lowest=cosines.min())


def _scale(values_N: Floats, *, lowest: float) -> Floats:
    span = values_N.max() - lowest
    return (values_N - lowest) / span if span > 0 else np.zeros_like(values_N)


def _check_scores(scores_N: Tensor | ArrayLike) -> NDArray[np.float32]:
    scores = as_scores(scores_N)
    if not scores.size:
        raise ValueError("a threshold needs scores of normal images, got none")
    return scores


def _place_above(scores_N: NDArray[np.float32], *, allowed: int) -> float:
    """Return a threshold that at most `allowed` scores reach.

    It is `NOISE` above the highest score that must not reach it, or halfway to the next one if that is nearer.
    """
    below = np.sort(scores_N)[::-1][allowed]
    above = np.min(scores_N, where=scores_N > below, initial=np.inf)
    with np.errstate(over="ignore"):  # the float above the largest is infinity, which no score reaches
        least = float(np.nextafter(below, np.float32(np.inf)))
    return max(least, float(np.float32(float(below) + min(NOISE, (float(above) - float(below)) / 2))))
