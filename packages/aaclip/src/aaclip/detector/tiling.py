"""Large pictures in overlapping tiles: where the tiles are, and how their maps are blended into one.

H, W pixels of a picture; h, w of a tile; S of the model's input.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OVERLAP = 0.25
"""Least share of a tile that overlaps the next one."""

Floats = NDArray[np.float32]


class Window(NamedTuple):
    """Place of a tile in pixels of the picture, as `Image.crop` takes it."""

    left: int
    top: int
    right: int
    bottom: int


def list_windows(*, width: int, height: int, tile: int) -> list[Window]:
    """Return evenly spread tiles that cover a picture, row by row; smaller ones if the picture is smaller.

    Raises:
        ValueError: A tile below 16 pixels.
    """
    if tile < 16:
        raise ValueError(f"tile={tile}: expected the side of a tile in pixels of the picture, 16 or more")
    return [
        Window(left, top, min(left + tile, width), min(top + tile, height))
        for top in _starts(height, tile)
        for left in _starts(width, tile)
    ]


def resize_map(map_SS: Floats, window: Window) -> Floats:
    """Return a map at the size (h, w) of a window, bilinear."""
    size = (window.right - window.left, window.bottom - window.top)
    return np.asarray(Image.fromarray(map_SS).resize(size, Image.Resampling.BILINEAR))


def blend_tiles(tiles: Iterable[tuple[Window, Floats]], *, width: int, height: int) -> Floats:
    """Return the (H, W) weighted mean of tiles (h, w).

    A tile weighs most in its middle and least at its rim, so that no seam shows.
    """
    total_HW, weight_HW = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for window, map_hw in tiles:
        weight_hw = np.outer(_ramp(map_hw.shape[0]), _ramp(map_hw.shape[1])).astype(np.float32)
        place = np.s_[window.top : window.bottom, window.left : window.right]
        total_HW[place] += weight_hw * map_hw
        weight_HW[place] += weight_hw
    return total_HW / weight_HW


def _starts(side: int, tile: int) -> list[int]:
    """Return the first pixel of each tile along a side."""
    if side <= tile:
        return [0]
    count = 1 + int(np.ceil((side - tile) / (tile * (1 - OVERLAP))))
    return [round(start) for start in np.linspace(0, side - tile, count)]


def _ramp(length: int) -> NDArray[np.float64]:
    """Return weights that rise from the rim to the middle and are above zero everywhere."""
    middle = (length - 1) / 2
    return 1 - np.abs(np.arange(length) - middle) / (middle + 1)
