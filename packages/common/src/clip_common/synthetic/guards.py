"""How far the crudest look gets: a linear classifier on thumbnails. What it solves is too easy to learn anything by.

N pictures, D numbers of a thumbnail or whatever features.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

THUMBNAIL = 16
"""Pixels a side."""

Floats = NDArray[np.float64]


def thumbnail_features(picture: Image.Image, *, width: int = THUMBNAIL, height: int = THUMBNAIL) -> Floats:
    """All numbers of a picture scaled down, in a row."""
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float64).ravel()


def linear_probe(known_ND: ArrayLike, labels_N: Sequence[int], asked_ND: ArrayLike) -> Floats:
    """Class probabilities (M, classes) of a logistic regression (L2, C = 1) on standardised features.

    Args:
        known_ND: (N, D) to learn from.
        labels_N: Their classes.
        asked_ND: (M, D) to predict.
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
    """Image AUROC of damaged against flawless for `linear_probe` on 16×16 thumbnails: the guard of the defect task.

    Args:
        known, damaged: Pictures to learn from, and which show a defect.
        asked, truly_damaged: Others, on which it is measured; both kinds must occur.
    """
    from sklearn.metrics import roc_auc_score

    scores = linear_probe(
        [thumbnail_features(picture) for picture in known],
        [int(flag) for flag in damaged],
        [thumbnail_features(picture) for picture in asked],
    )
    return float(roc_auc_score(truly_damaged, scores[:, 1]))
