"""Large pictures in overlapping tiles: where they lie, and how what is found in them is put together.

H, W pixels of a picture; h, w of a tile.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OVERLAP = 0.25
"""Share of a tile that the next one covers again, at least."""

Floats = NDArray[np.float32]


class Window(NamedTuple):
    """A tile's place, in pixels; also what `Image.crop` takes."""

    left: int
    top: int
    right: int
    bottom: int


def list_windows(*, width: int, height: int, tile: int) -> list[Window]:
    """Tiles that cover a picture, row by row, evenly spread; smaller ones where the picture is smaller.

    Raises:
        ValueError: A tile below 16 pixels.
    """
    if tile < 16:
        raise ValueError(f"tile={tile}: expected the side of a tile in pixels of the picture, from 16")
    return [
        Window(left, top, min(left + tile, width), min(top + tile, height))
        for top in _starts(height, tile)
        for left in _starts(width, tile)
    ]


def blend_tiles(tiles: Iterable[tuple[Window, Floats]], *, width: int, height: int) -> Floats:
    """(H, W) mean of tiles (h, w), each weighing most in its middle and least at its rim, so that no seam shows."""
    total_HW, weight_HW = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for window, map_hw in tiles:
        weight_hw = np.outer(_ramp(map_hw.shape[0]), _ramp(map_hw.shape[1])).astype(np.float32)
        place = np.s_[window.top : window.bottom, window.left : window.right]
        total_HW[place] += weight_hw * map_hw
        weight_HW[place] += weight_hw
    return total_HW / weight_HW


def _starts(side: int, tile: int) -> list[int]:
    """Where tiles begin along a side."""
    if side <= tile:
        return [0]
    count = 1 + int(np.ceil((side - tile) / (tile * (1 - OVERLAP))))
    return [round(start) for start in np.linspace(0, side - tile, count)]


def _ramp(length: int) -> NDArray[np.float64]:
    """Rises from the rim to the middle, above zero everywhere."""
    middle = (length - 1) / 2
    return 1 - np.abs(np.arange(length) - middle) / (middle + 1)
