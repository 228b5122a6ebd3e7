"""A heatmap over its picture, on one scale for all pictures. H and W pixels of a map."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from aaclip.report.findings import Region
from clip_common.heatmap import OPAQUE, blend, colours


def overlay(
    image: Image.Image, map_HW: ArrayLike, *, regions: Sequence[Region] = (), low: float = 0.0, high: float = 1.0
) -> Image.Image:
    """The picture with its scores in colour and its regions boxed, at its own size.

    The scale is the caller's and never the picture's own: a flawless part stays as it is, and two pictures compare.

    Args:
        image: RGB.
        map_HW: Scores, of any size; interpolated to the picture's.
        regions: Boxes in pixels of the map.
        low: Scores from here down leave the picture as it is.
        high: Scores from here up are brightest.

    Raises:
        ValueError: Not a map, or a scale without extent.
    """
    scores = np.asarray(map_HW, np.float32)
    if scores.ndim != 2:
        raise ValueError(f"expected a map (H, W), got the shape {scores.shape}")
    if not low < high:
        raise ValueError(f"low={low}, high={high}: expected a scale from low to a larger high")
    resized = Image.fromarray(scores).resize(image.size, Image.Resampling.BILINEAR)
    shown = Image.fromarray(blend(np.asarray(image), (np.asarray(resized) - low) / (high - low)))
    _draw(shown, regions, across=image.width / scores.shape[1], down=image.height / scores.shape[0])
    return shown


def legend(stops: int = 6) -> list[str]:
    """The scale from low to high as CSS colours, as transparent as they lie on a picture."""
    return [
        f"rgb({red:.0f} {green:.0f} {blue:.0f} / {OPAQUE * level:.2f})"
        for level in np.linspace(0, 1, stops)
        for red, green, blue in [colours()[round(255 * level)]]
    ]


def _draw(shown: Image.Image, regions: Sequence[Region], *, across: float, down: float) -> None:
    """White boxes in a black casing, to be seen on any picture."""
    width = max(1, round(max(shown.size) / 400))
    pen = ImageDraw.Draw(shown)
    for region in reversed(regions):  # the highest last, on top
        left, top = round(region.left * across), round(region.top * down)
        right, bottom = max(left, round(region.right * across) - 1), max(top, round(region.bottom * down) - 1)
        casing = (left - width, top - width, right + width, bottom + width)
        pen.rectangle(casing, outline=(0, 0, 0), width=width)
        pen.rectangle((left, top, right, bottom), outline=(255, 255, 255), width=width)
