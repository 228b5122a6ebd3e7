"""Heatmaps: scores as colours over a picture; a score has the same colour in all pictures. H and W pixels."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

COLOURS = "plasma"  # perceptually uniform; even its low end is visible on dark pictures
OPAQUE = 0.75
"""Opacity of the colour of the highest score."""


def blend(picture_HW3: NDArray[np.uint8], level_HW: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Blend scores over a picture: a score of 0 leaves a pixel unchanged, 1 gives the brightest colour.

    Args:
        picture_HW3: RGB, 0 to 255; both arrays may have the same further dimensions before H.
        level_HW: Scores, clipped to 0 to 1.
    """
    clipped_HW = np.clip(level_HW, 0, 1)
    colour_HW3 = colours()[np.rint(255 * clipped_HW).astype(np.uint8)]
    share_HW1 = OPAQUE * clipped_HW[..., None]
    return np.rint((1 - share_HW1) * picture_HW3.astype(np.float32) + share_HW1 * colour_HW3).astype(np.uint8)


@cache
def colours() -> NDArray[np.float32]:
    """Return the colour scale for scores from 0 to 1 as (256, 3), 0 to 255."""
    from matplotlib import colormaps

    return np.asarray(255 * colormaps[COLOURS](np.arange(256))[:, :3], np.float32)
