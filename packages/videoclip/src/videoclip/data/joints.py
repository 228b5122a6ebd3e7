"""COCO joints of a clip, from a file: in pixels of the video, with confidences from 0 to 1.

L frames of the file, 17 joints; 3: x, y and confidence.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from videoclip.data.numpy_files import NUMPY_ERRORS, open_numpy

SHARES = "keypoints from 0 to 1 are read as shares of the picture's width and height"
PERCENT = "confidences of keypoints up to 100 are read as per cent"

_CORNER = 1.5
"""Pixels. No body fits into so small a corner of a picture: joints that all do are shares of its width and height."""
_ROUNDING = 1e-3
"""How far a confidence may exceed 1: half precision rounds."""
_LEAST_PERCENT = 20
"""Scores of some pose estimators exceed 1 a few times, so a file whose highest is below this is not in per cent."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Joints:
    """Joints of a file.

    Attributes:
        joints_L173: x and y in pixels of the video, and confidence; zeros for a joint that was not found.
        mended: What was converted: `SHARES`, `PERCENT`.
    """

    joints_L173: Floats
    mended: tuple[str, ...]


def load_joints(file: Path, *, width: int, height: int) -> Joints:
    """Load the joints of a video.

    A joint was not found if its confidence is 0, or if it is at (0, 0) or (−1, −1), which pose estimators write then.
    Joints that are all within 0 to 1 are multiplied by the video's size, and per cent are divided by 100.

    Args:
        file: An .npy of (L, 17, 3).
        width, height: Size of the video in pixels.

    Raises:
        DataError: Not such a file; positions or confidences of unknown meaning.
    """
    joints_L173 = _load(file)
    places_L172, confidence_L17 = joints_L173[..., :2], joints_L173[..., 2]
    absent_L17 = (confidence_L17 == 0) | (places_L172 == 0).all(axis=-1) | (places_L172 == -1).all(axis=-1)
    joints_L173[absent_L17] = 0
    if not np.isfinite(joints_L173).all() or (confidence_L17 < 0).any():
        raise DataError(
            f"{file}: expected finite keypoints with confidences from 0 to 1: "
            "give joints that were not found confidence 0"
        )
    mended = []
    if _are_shares(places_L172[~absent_L17], file):
        places_L172 *= (width, height)
        mended.append(SHARES)
    if _are_percent(confidence_L17, file):
        confidence_L17 /= 100
        mended.append(PERCENT)
    np.minimum(confidence_L17, 1, out=confidence_L17)
    return Joints(joints_L173, tuple(mended))


def _load(file: Path) -> Floats:
    try:
        with open_numpy(file) as array:
            joints_L173 = np.array(array, dtype=np.float32)
    except NUMPY_ERRORS as error:
        raise DataError(f"{file}: expected an .npy of keypoints ({error})") from error
    if joints_L173.ndim != 3 or joints_L173.shape[1:] != (17, 3) or not len(joints_L173):
        raise DataError(f"{file}: expected keypoints of shape (frames, 17, 3), got {joints_L173.shape}")
    return joints_L173


def _are_shares(places_N2: Floats, file: Path) -> bool:
    """Return whether the joints that were found are all within the corner; raise DataError if most but not all are."""
    if not len(places_N2):
        return False
    in_corner = float((np.abs(places_N2) <= _CORNER).all(axis=1).mean())
    if 0.5 < in_corner < 1:
        raise DataError(
            f"{file}: {100 * in_corner:.0f} % of the keypoints are within 0 to 1, the others are not: give all of "
            "them in pixels of the video, and joints that were not found confidence 0"
        )
    return in_corner == 1


def _are_percent(confidence_L17: Floats, file: Path) -> bool:
    most = float(confidence_L17.max())
    if most <= 1 + _ROUNDING:
        return False
    if not _LEAST_PERCENT <= most <= 100 * (1 + _ROUNDING):
        raise DataError(
            f"{file}: expected keypoints with confidences from 0 to 1 (or per cent), got up to {most:g}: scale them"
        )
    return True
