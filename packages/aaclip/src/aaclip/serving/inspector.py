"""One uploaded picture and a noun to an answer: the work of the server, one picture at a time."""

import base64
import io
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import Image

from aaclip.detector.calibration import choose_threshold
from aaclip.detector.detection import Detection, Verdict
from aaclip.detector.detector import Detector
from aaclip.models.names import normalise_class
from aaclip.report.findings import Region
from clip_common.images import read_image

LONGEST = 512
"""Longer side of the heatmap in an answer, in pixels."""
NOUNS = 256
"""New nouns whose embeddings are kept; an older one is embedded again when it is asked for."""


@dataclass(frozen=True)
class Limits:
    """What an upload may cost.

    Attributes:
        bytes: Of a file.
        pixels: Of a picture; its maps take about 20 bytes a pixel while it is inspected.
        noun: Characters of a noun.
        waiting: Requests at a time, the one at work included; more are refused with 503.
        seconds: An upload may take.
    """

    bytes: int = 32 * 2**20
    pixels: int = 40_000_000
    noun: int = 80
    waiting: int = 256
    seconds: float = 60.0


@dataclass(frozen=True)
class Inspection:
    """The answer for one picture.

    Attributes:
        name: The noun it was inspected as.
        score: From 0 to 1; higher is more anomalous.
        verdict: `anomalous` if the score reaches the threshold, else `normal`; null without a threshold.
        threshold: Of the score; null if none is set.
        width: Pixels of the picture, turned as EXIF says.
        height: Pixels of the picture, turned as EXIF says.
        boxes: Connected regions of defects in pixels of the picture, the hottest first.
        heatmap: PNG in base64, grey from 0 to 255, at most 512 pixels a side; from 128 up a pixel is part of a defect.
    """

    name: str
    score: float
    verdict: Verdict | None
    threshold: float | None
    width: int
    height: int
    boxes: list[Region]
    heatmap: str


class Inspector:
    """A detector that answers for uploads. Not thread-safe: the server calls it from one thread.

    Args:
        detector: Whose answers they are; nouns that it does not know are embedded when asked for.
        limits: Of uploads.

    Raises:
        ValueError: A threshold for tiles.
    """

    def __init__(self, detector: Detector, limits: Limits) -> None:
        self.detector, self.limits = detector, limits
        self.threshold = choose_threshold(detector.threshold, None, tile=None)
        self.known = frozenset(detector.classes)
        self._asked: dict[str, None] = {}

    def inspect(self, upload: IO[bytes], name: str) -> Inspection:
        """Answer for one upload.

        Args:
            upload: The bytes of a picture.
            name: What it shows.

        Raises:
            TooManyPixelsError: They are not decoded.
            DataError: Not a picture, or a damaged one.
        """
        upload.seek(0)
        data = upload.read()
        picture = read_image(data, name="the upload", most_pixels=self.limits.pixels)
        found = next(self.detector.predictions([picture], name=name))
        self._forget_nouns(name)
        return Inspection(
            name=name,
            score=found.score,
            verdict=found.verdict,
            threshold=None if self.threshold is None else self.threshold.value,
            width=picture.width,
            height=picture.height,
            boxes=found.boxes,
            heatmap=_encode_map(found),
        )

    def _forget_nouns(self, name: str) -> None:
        """Drop the noun that was not asked for the longest, if there are too many, so that memory stays bounded."""
        called = normalise_class(name)
        if called in self.known:
            return
        self._asked.pop(called, None)
        self._asked[called] = None
        if len(self._asked) > NOUNS:
            oldest = next(iter(self._asked))
            del self._asked[oldest]
            del self.detector.classes[oldest]
            if self.detector.contexts is not None:
                del self.detector.contexts.text[oldest]


def check_noun(name: str) -> str:
    """Return a noun without blanks around it, or raise ValueError if it is empty or has control characters."""
    noun = name.strip()
    if not noun or not noun.isprintable():
        raise ValueError(f"name {name[:40]!r}: expected a noun, such as metal nut")
    return noun


def _encode_map(found: Detection) -> str:
    height, width = found.heatmap_HW.shape
    share = min(1.0, LONGEST / max(height, width))
    small = Image.fromarray(found.heatmap_HW).resize(
        (max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BILINEAR
    )
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * np.asarray(small)).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
