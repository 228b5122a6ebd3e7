"""Guards: linear classifiers on thumbnails. A task that they solve is too easy to show that a model has learned.

N pictures, D features.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from clip_common.errors import check_list

THUMBNAIL = 16
"""Side in pixels."""

Floats = NDArray[np.float64]


def thumbnail_features(picture: Image.Image, *, width: int = THUMBNAIL, height: int = THUMBNAIL) -> Floats:
    """Return the pixel values of a picture scaled down, as a vector."""
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float64).ravel()


def linear_probe(known_ND: ArrayLike, labels_N: Sequence[int], asked_ND: ArrayLike) -> Floats:
    """Return class probabilities (M, classes) of a logistic regression (L2, C = 1) on standardised features.

    Args:
        known_ND: (N, D) training features.
        labels_N: Their classes.
        asked_ND: (M, D) features to classify.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return np.asarray(model.fit(known_ND, labels_N).predict_proba(asked_ND))


def thumbnail_auroc(
    known: Sequence[Image.Image],
    damaged: Sequence[bool],
    asked: Sequence[Image.Image],
    truly_damaged: Sequence[bool],
) -> float:
    """Return the image AUROC of `linear_probe` on 16×16 thumbnails, damaged against flawless: the defect task's guard.

    Args:
        known, damaged: Training pictures, and which of them show a defect.
        asked, truly_damaged: Test pictures, and which of them show a defect; both kinds must occur.
    """
    check_list(known, "known", empty=False)
    check_list(asked, "asked", empty=False)
    from sklearn.metrics import roc_auc_score

    scores = linear_probe(
        [thumbnail_features(picture) for picture in known],
        [int(flag) for flag in damaged],
        [thumbnail_features(picture) for picture in asked],
    )
    return float(roc_auc_score(truly_damaged, scores[:, 1]))
