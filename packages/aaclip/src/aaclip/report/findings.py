"""Plain data that a report shows: the anomalous regions of a picture, and the answer for one picture.

H and W pixels of a map.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A connected region of a map: its box, in pixels of the map, and its highest score.

    Attributes:
        left: First column.
        top: First row.
        right: Column after the last, as PIL crops.
        bottom: Row after the last.
        area: Pixels of the region itself.
        peak: Its highest score.
    """

    left: int
    top: int
    right: int
    bottom: int
    area: int
    peak: float


@dataclass(frozen=True)
class Finding:
    """The answer for one picture.

    Attributes:
        path: The picture.
        name: The noun in the question, such as "metal nut".
        score: Its score, 0 to 1.
        anomalous: The verdict; None without a threshold.
        map_HW: Score of each pixel, on one scale for all pictures; of any size.
        regions: Regions of the map.
    """

    path: Path
    name: str
    score: float
    anomalous: bool | None
    map_HW: NDArray[np.float32]
    regions: tuple[Region, ...] = ()
