"""Metrics of a scored set, and of bootstrap resamples of it.

The same functions compute both: a resample is a row of weights (how often each clip was drawn), the set itself a row of
ones. A metric that does not exist for a row, such as a mean of no clips, is NaN here; callers drop it.

N clips, M subjects (or their labels), K classes, S rows of weights, D values of an embedding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from clip_common.errors import DataError
from clip_common.metrics import retrieval_metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KS = (1, 5)
SAME = 1e-6
"""Similarities that differ by less are equal: the resolution of float32."""


def divide(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    """Return `above / below`, NaN where `below` is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def count_confusion(label_N: Ints, predicted_N: Ints, weights_SN: NDArray[Any], *, classes: int) -> Floats:
    """Count clips by true class (rows) and predicted class (columns): (S, K, K)."""
    cell_NC = np.eye(classes * classes)[classes * label_N + predicted_N]
    return (weights_SN @ cell_NC).reshape(-1, classes, classes)


def compute_recalls(confusion_SKK: Floats) -> Floats:
    """Return the share of each class's clips that were predicted as it, (S, K); NaN for a class without clips."""
    return divide(np.diagonal(confusion_SKK, axis1=1, axis2=2), confusion_SKK.sum(2))


def name_recalls(confusion_SKK: Floats) -> dict[str, Floats]:
    """Return the recalls by name, `recall_0` and so on, (S,) each."""
    return {f"recall_{label}": recall_S for label, recall_S in enumerate(compute_recalls(confusion_SKK).T)}


def score_confusion(confusion_SKK: Floats) -> dict[str, Floats]:
    """Return `accuracy`, `balanced_accuracy` and `macro_f1`, (S,) each, defined as in scikit-learn.

    Balanced accuracy is the mean recall of the classes that have clips; macro F1 the mean of
    2·hits / (clips + predictions) over the classes that have clips or were predicted.
    """
    hits_SK = np.diagonal(confusion_SKK, axis1=1, axis2=2)
    f1_SK = divide(2 * hits_SK, confusion_SKK.sum(2) + confusion_SKK.sum(1))
    return {
        "accuracy": divide(hits_SK.sum(1), confusion_SKK.sum((1, 2))),
        "balanced_accuracy": _mean_of_finite(compute_recalls(confusion_SKK)),
        "macro_f1": _mean_of_finite(f1_SK),
    }


def score_classification(predicted_N: ArrayLike, label_N: ArrayLike, *, classes: int) -> dict[str, float]:
    """Return `score_confusion` of a set and the recall of each class as `recall_0`, …; undefined metrics are absent.

    Clips with an unknown label (-1) are ignored.
    """
    labels_N, said_N = np.asarray(label_N), np.asarray(predicted_N)
    known_N = labels_N >= 0
    table_1KK = count_confusion(labels_N[known_N], said_N[known_N], np.ones((1, known_N.sum())), classes=classes)
    return keep_finite(score_confusion(table_1KK) | name_recalls(table_1KK))


def keep_finite(metrics: Mapping[str, Floats]) -> dict[str, float]:
    """Return the first row of each metric, without those that are not finite there."""
    return {name: float(values_S[0]) for name, values_S in metrics.items() if np.isfinite(values_S[0])}


def find_majority(train_labels: Iterable[int]) -> int:
    """Return the most frequent class of the training labels, the lowest of several; unknown labels (-1) are ignored.

    Raises:
        DataError: No label is known.
    """
    known = np.array([label for label in train_labels if label >= 0], np.int64)
    if not len(known):
        raise DataError("no training clip has a label: give the majority baseline the labels of the training split")
    return int(np.bincount(known).argmax())


@dataclass(frozen=True)
class SubjectPredictions:
    """One prediction per subject: `probability_MK`, the mean over its clips; `label_M`; and `subject_M`, its number."""

    probability_MK: Floats
    label_M: Ints
    subject_M: Ints


def average_by_subject(probability_NK: Floats, label_N: Ints, subject_N: Ints) -> SubjectPredictions:
    """Average the probabilities of each subject's clips; a subject with two labels gives one prediction per label."""
    pairs_M2, row_N = np.unique(np.stack([subject_N, label_N], axis=1), axis=0, return_inverse=True)
    row_N = row_N.reshape(-1)  # numpy 2.0 returns a column
    sums_MK = np.zeros((len(pairs_M2), probability_NK.shape[1]))
    np.add.at(sums_MK, row_N, probability_NK)
    return SubjectPredictions(
        probability_MK=sums_MK / np.bincount(row_N)[:, None], label_M=pairs_M2[:, 1], subject_M=pairs_M2[:, 0]
    )


def score_retrieval(
    video_ND: NDArray[Any], attn_ND: NDArray[Any], *, map_N: Ints, regions_N: Ints
) -> dict[str, Floats]:
    """Return for each of at least two clips whether its map is among the first K (`v2a`), and vice versa (`a2v`): (N,).

    `retrieval_r1_v2a` and so on count only a clip's own map; among tied maps, such as those of one file, the hit is the
    expected share. `…_group` count every clip of the same map, `…_regions` every clip in which the same regions were
    attended.
    """
    videos, maps = torch.from_numpy(video_ND), torch.from_numpy(attn_ND)
    hits_of: dict[str, Floats] = {}
    for suffix, group_N in _name_groups(map_N, regions_N).items():
        _, inverse_N, sizes = np.unique(group_N, return_inverse=True, return_counts=True)
        members = [rows.tolist() for rows in np.split(np.argsort(inverse_N, kind="stable"), np.cumsum(sizes)[:-1])]
        positives = [members[group] for group in inverse_N]
        for way, queries_ND, gallery_ND in (("v2a", videos, maps), ("a2v", maps, videos)):
            hits = retrieval_metrics(queries_ND, gallery_ND, positives, ks=KS).per_query
            hits_of |= {f"retrieval_r{k}_{way}{suffix}": hits[f"R@{k}"] for k in KS}
    return hits_of


def compute_chance(map_N: Ints, regions_N: Ints) -> dict[str, float]:
    """Return the metrics of a random order, `retrieval_r1_chance`, `…_chance_group` and `…_chance_regions`, both ways.

    k draws from N without replacement miss all of a clip's g positives with probability C(N − g, k) / C(N, k).
    """
    N = len(map_N)
    chance = {}
    for suffix, group_N in _name_groups(map_N, regions_N).items():
        _, inverse_N, sizes = np.unique(group_N, return_inverse=True, return_counts=True)
        for k in KS:
            drawn = min(k, N)
            miss_G = np.array([comb(N - int(size), drawn) / comb(N, drawn) for size in sizes])
            chance[f"retrieval_r{k}_chance{suffix}"] = float(np.mean(1 - miss_G[inverse_N]))
    return chance


def _name_groups(map_N: Ints, regions_N: Ints) -> dict[str, Ints]:
    """Return suffix of a metric → numbers that are equal for clips that count as one another's positives."""
    return {"": np.arange(len(map_N)), "_group": map_N, "_regions": regions_N}


def score_alignment(similarity_N: Floats, correct_N: NDArray[np.bool_], weights_SN: NDArray[Any]) -> dict[str, Floats]:
    """Return whether correctly classified clips are more similar to their maps: (S,) each.

    `align_sim_correct` and `align_sim_incorrect` are means of the similarity, `align_sim_gap` their difference, and
    `align_sim_corr` Pearson's correlation with correctness as 0 and 1. They are NaN without correct or without
    incorrect clips; the correlation is also NaN if all similarities are equal.
    """
    total_S = weights_SN.sum(1)
    right_S, wrong_S = weights_SN @ correct_N, weights_SN @ ~correct_N
    of_right_S = divide(weights_SN @ (similarity_N * correct_N), right_S)
    of_wrong_S = divide(weights_SN @ (similarity_N * ~correct_N), wrong_S)
    gap_S = of_right_S - of_wrong_S
    centred_N = similarity_N - similarity_N.mean()  # otherwise the difference of two squares would lose its digits
    mean_S = divide(weights_SN @ centred_N, total_S)
    variance_S = divide(weights_SN @ centred_N**2, total_S) - mean_S**2
    varies_S = np.where(variance_S > SAME**2, variance_S, np.nan)
    # the covariance with 0 and 1 is gap · p(1 − p), their variance p(1 − p)
    share_S = divide(right_S, total_S)
    return {
        "align_sim_correct": of_right_S,
        "align_sim_incorrect": of_wrong_S,
        "align_sim_gap": gap_S,
        "align_sim_corr": np.clip(gap_S * np.sqrt(share_S * (1 - share_S) / varies_S), -1, 1),
    }


def cosine(a_ND: NDArray[Any], b_ND: NDArray[Any]) -> Floats:
    """Return the cosine of each pair of rows, (N,); 0 for a row of zeros."""
    lengths_N = np.linalg.norm(a_ND.astype(np.float64), axis=1) * np.linalg.norm(b_ND.astype(np.float64), axis=1)
    products_N = (a_ND.astype(np.float64) * b_ND).sum(1)
    return np.divide(products_N, lengths_N, out=np.zeros(len(a_ND)), where=lengths_N > 0)


def _mean_of_finite(values_SK: Floats) -> Floats:
    return divide(np.nansum(values_SK, axis=1), np.isfinite(values_SK).sum(1))
