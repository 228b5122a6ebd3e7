"""Ceilings and guards of the walking task: from the joints, from the mean map, from one frame, and from no input.

Every number is an accuracy on held-out subjects: each fold is predicted by a classifier trained on the others.
N clips, T frames, J = 17 joints, D features.
"""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from clip_common.regions import JOINTS
from clip_common.synthetic.guards import linear_probe, thumbnail_features
from clip_common.tables import read_table


def asymmetry(keypoints: ArrayLike) -> dict[str, float]:
    """Return how much left and right differ in each region that a pathology affects; near 0 in a normal walk.

    Args:
        keypoints: (T, J, 3) of at least one stride: x and y in pixels at any scale, and confidence, which is ignored.

    Returns:
        `foot`: log-ratio of the heights that the ankles rise; `shoulder`: log-ratio of the swings of the upper arms;
        `lumbar_pelvis`: difference of the trunk's lean between stance on the left and on the right foot, in radians;
        `wrist`: difference of the elbows' mean bends, in radians. All are absolute values.

    Raises:
        ValueError: The clip is too short to show a step of each foot.
    """
    at = {name: np.asarray(keypoints)[:, column, :2].astype(np.float64) for column, name in enumerate(JOINTS)}
    rise = {side: at[f"{side}_ankle"][:, 1].max() - at[f"{side}_ankle"][:, 1] for side in ("left", "right")}
    swing, bend = {}, {}
    for side in ("left", "right"):
        upper = at[f"{side}_elbow"] - at[f"{side}_shoulder"]
        fore = at[f"{side}_wrist"] - at[f"{side}_elbow"]
        swing[side] = np.arctan2(upper[:, 0], upper[:, 1])
        lengths = np.linalg.norm(upper, axis=1) * np.linalg.norm(fore, axis=1)
        bend[side] = np.arccos(np.clip((upper * fore).sum(axis=1) / lengths, -1, 1))
    spine = at["left_shoulder"] + at["right_shoulder"] - at["left_hip"] - at["right_hip"]
    lean, on_left = np.arctan2(spine[:, 0], -spine[:, 1]), rise["left"] < rise["right"]
    if on_left.all() or not on_left.any():
        raise ValueError(f"asymmetry needs a step of each foot: {len(lean)} frames show none; give about a second")
    return {
        "foot": float(abs(np.log(np.ptp(rise["left"]) / np.ptp(rise["right"])))),
        "shoulder": float(abs(np.log(np.ptp(swing["left"]) / np.ptp(swing["right"])))),
        "lumbar_pelvis": float(abs(lean[on_left].mean() - lean[~on_left].mean())),
        "wrist": float(abs(bend["left"].mean() - bend["right"].mean())),
    }


def keypoint_oracle(keypoints: Sequence[ArrayLike], labels: Sequence[int], folds: Sequence[int]) -> float:
    """Return the accuracy of a logistic regression on `asymmetry`: the ceiling.

    Args:
        keypoints: N arrays (T, J, 3).
        labels: The class of each clip.
        folds: The fold of each clip.
    """
    return held_out_accuracy([list(asymmetry(clip).values()) for clip in keypoints], labels, folds)


def map_oracle(maps: Sequence[ArrayLike], labels: Sequence[int], folds: Sequence[int]) -> float:
    """Return the accuracy of a logistic regression on each clip's mean map, averaged in 16 bands of rows.

    The regions are at different heights, so the bands tell them apart; 16 are few enough to learn from a few dozen
    clips.

    Args:
        maps: N arrays (T, H, W), or their means over time (H, W).
        labels: The class of each clip.
        folds: The fold of each clip.
    """
    means = [np.asarray(each, dtype=np.float32) for each in maps]
    means = [each.mean(axis=0) if each.ndim == 3 else each for each in means]
    return held_out_accuracy([thumbnail_features(Image.fromarray(each), width=1) for each in means], labels, folds)


def frame_guard(frames: Sequence[NDArray[np.uint8]], labels: Sequence[int], folds: Sequence[int]) -> float:
    """Return the accuracy of a logistic regression on the 16×16 thumbnail of one frame.

    Args:
        frames: N arrays (H, W, 3) uint8 RGB, one for each clip.
        labels: The class of each clip.
        folds: The fold of each clip.
    """
    return held_out_accuracy([thumbnail_features(Image.fromarray(frame)) for frame in frames], labels, folds)


def majority_label_accuracy(labels: Sequence[int], folds: Sequence[int]) -> float:
    """Return the accuracy of predicting the most frequent class of the other folds (of several, the smallest)."""
    y, fold = np.asarray(labels), np.asarray(folds)
    guesses = {held: np.bincount(y[fold != held]).argmax() for held in np.unique(fold)}
    return float(np.mean(y == np.array([guesses[held] for held in fold])))


def held_out_accuracy(features: ArrayLike, labels: Sequence[int], folds: Sequence[int]) -> float:
    """Return the accuracy of `guards.linear_probe` that predicts each fold from the others.

    Args:
        features: (N, D); standardised by the mean and deviation of the training folds.
        labels: N classes from 0.
        folds: N folds, at least two different ones.
    """
    x_ND, y, fold = np.asarray(features, dtype=np.float64), np.asarray(labels), np.asarray(folds)
    right = np.zeros(len(y), dtype=bool)
    for held in np.unique(fold):
        known = fold != held
        classes = np.unique(y[known])
        right[~known] = classes[linear_probe(x_ND[known], y[known], x_ND[~known]).argmax(axis=1)] == y[~known]
    return float(right.mean())


def walking_ceilings(folder: str | Path) -> dict[str, float]:
    """Compute all four accuracies of a folder that `write_walking` wrote, from its files alone.

    Returns:
        `majority`, `keypoints`, `mean map` and `one frame` (the middle one), each 0 to 1.
    """
    folder = Path(folder)
    rows = [
        row for _, row in read_table(folder / "manifest.csv", needed=("video", "label", "map", "keypoints", "fold"))
    ]
    labels, folds = [int(row["label"]) for row in rows], [int(row["fold"]) for row in rows]
    joints = [np.load(folder / row["keypoints"]) for row in rows]
    means = [np.load(folder / row["map"]).astype(np.float32).mean(axis=0) for row in rows]
    return {
        "majority": majority_label_accuracy(labels, folds),
        "keypoints": keypoint_oracle(joints, labels, folds),
        "mean map": map_oracle(means, labels, folds),
        "one frame": frame_guard([_middle_frame(folder / row["video"]) for row in rows], labels, folds),
    }


def _middle_frame(video: Path) -> NDArray[np.uint8]:
    with av.open(str(video)) as container:
        frames = list(container.decode(video=0))
    return np.asarray(frames[len(frames) // 2].to_ndarray(format="rgb24"))
