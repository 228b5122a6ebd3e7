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
    """Return the picture with its scores in colour and boxes around its regions, at its own size.

    The scale is given, never fitted to the picture: a flawless part keeps its colours, and pictures can be compared.

    Args:
        image: RGB.
        map_HW: Scores, of any size; interpolated to the picture's.
        regions: Boxes in pixels of the map.
        low: Scores from here down leave the picture unchanged.
        high: Scores from here up have the brightest colour.

    Raises:
        ValueError: Not a map, or a scale whose high is not above its low.
    """
    scores = np.asarray(map_HW, np.float32)
    if scores.ndim != 2:
        raise ValueError(f"expected a map (H, W), got the shape {scores.shape}")
    if not low < high:
        raise ValueError(f"low={low}, high={high}: expected a scale from low to a larger high")
    resized = Image.fromarray(scores).resize(image.size, Image.Resampling.BILINEAR)
    shown = Image.fromarray(blend(np.asarray(image), (np.asarray(resized) - low) / (high - low)))
    _draw_boxes(shown, regions, across=image.width / scores.shape[1], down=image.height / scores.shape[0])
    return shown


def legend(stops: int = 6) -> list[str]:
    """Return the scale from low to high as CSS colours, with the transparency that they have on a picture."""
    return [
        f"rgb({red:.0f} {green:.0f} {blue:.0f} / {OPAQUE * level:.2f})"
        for level in np.linspace(0, 1, stops)
        for red, green, blue in [colours()[round(255 * level)]]
    ]


def _draw_boxes(shown: Image.Image, regions: Sequence[Region], *, across: float, down: float) -> None:
    """Draw white boxes with black outlines, visible on any picture."""
    width = max(1, round(max(shown.size) / 400))
    pen = ImageDraw.Draw(shown)
    for region in reversed(regions):  # the hottest last, so that it is on top
        left, top = round(region.left * across), round(region.top * down)
        right, bottom = max(left, round(region.right * across) - 1), max(top, round(region.bottom * down) - 1)
        casing = (left - width, top - width, right + width, bottom + width)
        pen.rectangle(casing, outline=(0, 0, 0), width=width)
        pen.rectangle((left, top, right, bottom), outline=(255, 255, 255), width=width)
