"""The answer for one picture. H and W pixels of the picture."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aaclip.report.findings import Region

Verdict = Literal["normal", "anomalous"]


@dataclass(frozen=True)
class Detection:
    """The answer for one picture.

    Attributes:
        score: From 0 to 1; the same for the picture alone, in a batch or in another process.
        verdict: `anomalous` if the score reaches the threshold, else `normal`; None without a threshold.
        heatmap_HW: Float32 from 0 to 1, at the picture's size, on one scale for all pictures.
        mask_HW: Bool: where the heatmap is above one half.
        boxes: Connected regions of the mask, hottest first.
    """

    score: float
    verdict: Verdict | None
    heatmap_HW: NDArray[np.float32]
    mask_HW: NDArray[np.bool_]
    boxes: list[Region]
