"""Scores in colour over a picture, the same colour for the same score everywhere. H and W pixels."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

COLOURS = "plasma"  # perceptually uniform, and seen on dark pictures from its low end up
OPAQUE = 0.75
"""How much of the picture the highest score covers."""


def blend(picture_HW3: NDArray[np.uint8], level_HW: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The picture under its scores: as it is where they are 0, and under the brightest colour where they are 1.

    Args:
        picture_HW3: RGB; dimensions may stand before H, the same in both.
        level_HW: Scores; those outside 0 to 1 are clipped.
    """
    clipped_HW = np.clip(level_HW, 0, 1)
    colour_HW3 = colours()[np.rint(255 * clipped_HW).astype(np.uint8)]
    share_HW1 = OPAQUE * clipped_HW[..., None]
    return np.rint((1 - share_HW1) * picture_HW3.astype(np.float32) + share_HW1 * colour_HW3).astype(np.uint8)


@cache
def colours() -> NDArray[np.float32]:
    """The scale from 0 to 1 as (256, 3), 0 to 255."""
    from matplotlib import colormaps

    return np.asarray(255 * colormaps[COLOURS](np.arange(256))[:, :3], np.float32)
