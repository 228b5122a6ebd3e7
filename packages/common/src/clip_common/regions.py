"""COCO's joints, the named regions of the body that clinicians watch, and attention maps of watched regions.

T frames, J = 17 joints in COCO's order, H rows and W columns of pixels.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import check_list

JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""The 17 joints of COCO, in COCO's order."""

REGIONS: dict[str, tuple[str, ...]] = {
    "foot": ("left_ankle", "right_ankle"),
    "wrist": ("left_wrist", "right_wrist"),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "lumbar_pelvis": ("left_hip", "right_hip"),
    "head": ("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
}
"""The joints of each named region, of both sides: the name of a region does not tell the side."""

_SPREAD = 0.1

Floats = NDArray[np.float32]


def attention_maps(
    keypoints: Floats,
    regions: Sequence[str],
    *,
    height: int,
    width: int,
    combine: Literal["maximum", "mean"] = "maximum",
) -> Floats:
    """Return attention maps of a viewer who watches these regions: a Gaussian on each of their joints, combined.

    The maps follow the joints, as a gaze would: the sequence shows some of the gait, its mean over time only the place.

    Args:
        keypoints: (T, J, 3): x and y in pixels (the middle of the first pixel is 0.5), and confidence, 0 to 1.
        regions: Keys of `REGIONS`; without any the maps are zero.
        height, width: Size of the picture in pixels.
        combine: Maximum or mean over the joints of all regions. A joint that was not found counts as zero in both.

    Returns:
        (T, H, W) float32, 0 to 1: of each joint confidence·exp(−dx²/2σ²)·exp(−dy²/2σ²), σ = 0.1·min(H, W).

    Raises:
        ValueError: A region is unknown.
    """
    check_list(regions, "regions")
    unknown = [region for region in regions if region not in REGIONS]
    if unknown:
        raise ValueError(f"regions must be some of {', '.join(REGIONS)}: got {', '.join(unknown)}")
    sigma = _SPREAD * min(height, width)
    maps = np.zeros((len(keypoints), height, width), dtype=np.float32)
    joints = [JOINTS.index(name) for region in regions for name in REGIONS[region]]
    for joint in joints:
        x, y, confidence = (keypoints[:, joint, column, None] for column in range(3))
        across = np.exp(-((np.arange(width, dtype=np.float32) + 0.5 - x) ** 2) / (2 * sigma**2))
        down = confidence * np.exp(-((np.arange(height, dtype=np.float32) + 0.5 - y) ** 2) / (2 * sigma**2))
        blob = down[:, :, None] * across[:, None, :]
        if combine == "mean":
            maps += blob / len(joints)
        else:
            np.maximum(maps, blob, out=maps)
    return maps
