"""From pictures to detections, a batch of pictures or tiles at a time.

Shapes: B places, S pixels of the model's input, H and W of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from aaclip.detector.calibration import Threshold
from aaclip.detector.detection import Detection, Verdict
from aaclip.detector.regions import find_regions
from aaclip.detector.tiling import Window, blend_tiles, list_windows, resize_map
from clip_common.images import read_image, to_rgb

if TYPE_CHECKING:
    from aaclip.detector.detector import Detector

Picture = str | Path | Image.Image
"""A file, or an opened picture."""


def look(
    detector: Detector,
    images: Iterable[Picture],
    *,
    name: str,
    limit: Threshold | None,
    tile: int | None,
    batch_size: int,
) -> Iterator[Detection]:
    """Yield the detection of each picture; a batch is computed when its first one is asked for.

    Args:
        detector: Computes maps and scores.
        images: Read when their batch is computed.
        name: What they show.
        limit: Threshold of the verdicts; None: no verdicts.
        tile: Side of the tiles to look at, in pixels of the picture; None: whole pictures.
        batch_size: Pictures at a time, or tiles of one picture.
    """
    pending = iter(images)
    if tile is None:
        while pictures := [open_picture(one) for one in islice(pending, batch_size)]:
            whole = [(picture, Window(0, 0, *picture.size)) for picture in pictures]
            for (_, window), (map_SS, score) in zip(whole, _score_places(detector, whole, name), strict=True):
                yield _detect(resize_map(map_SS, window), score, limit, border=detector.border)
        return
    for picture in map(open_picture, pending):
        width, height = picture.size
        tiles = [(picture, window) for window in list_windows(width=width, height=height, tile=tile)]
        maps, scores = [], []
        for start in range(0, len(tiles), batch_size):
            batch = tiles[start : start + batch_size]
            for (_, window), (map_SS, score) in zip(batch, _score_places(detector, batch, name), strict=True):
                maps.append((window, resize_map(map_SS, window)))
                scores.append(score)
        map_HW = blend_tiles(maps, width=width, height=height)
        yield _detect(map_HW, max(scores), limit, border=detector.border)


def open_picture(source: Picture) -> Image.Image:
    """Return an RGB picture, from a file or from an opened picture."""
    return to_rgb(source) if isinstance(source, Image.Image) else read_image(Path(source))


def _score_places(
    detector: Detector, places: Sequence[tuple[Image.Image, Window]], name: str
) -> list[tuple[NDArray[np.float32], float]]:
    """Return the map (S, S) and the score of each place, in one batch."""
    images_B3SS = torch.stack([detector.tensor_of(picture.crop(window)) for picture, window in places])
    text_BD2 = detector.class_embedding(name).expand(len(places), -1, -1)
    context = detector.text_contexts([name])
    scores = detector.scores(images_B3SS, text_BD2, memory=detector.memory_of(name), context=context)
    return list(zip(scores.maps_BSS.cpu().numpy(), scores.scores_B.tolist(), strict=True))


def _detect(map_HW: NDArray[np.float32], score: float, limit: Threshold | None, *, border: float) -> Detection:
    # after tiles were blended at the picture's size, so not a part of the scorer
    heatmap_HW = expit(map_HW - np.float32(border))
    mask_HW = heatmap_HW > 0.5
    verdict: Verdict | None = None
    if limit is not None:
        verdict = "anomalous" if score >= limit.value else "normal"
    return Detection(score, verdict, heatmap_HW, mask_HW, find_regions(mask_HW, heatmap_HW, least=4))
