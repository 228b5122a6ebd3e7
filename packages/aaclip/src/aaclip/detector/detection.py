"""What is found in one picture, and what is known of a batch before it is decided.

B images, S pixels of the model's input, H and W of a picture.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aaclip.detector.regions import Region


@dataclass(frozen=True)
class Detection:
    """What is found in one picture.

    Attributes:
        score: Probability-like, 0 to 1; the same for the picture alone, in a batch or in another process.
        verdict: `anomalous` where the score reaches the threshold, else `normal`; None before a threshold is set.
        heatmap_HW: Float32 0 to 1, at the picture's size, on one scale for all pictures: above one half is in the mask.
        mask_HW: Bool, where the heatmap is above one half.
        boxes: The mask's connected regions, hottest first.
    """

    score: float
    verdict: Literal["normal", "anomalous"] | None
    heatmap_HW: NDArray[np.float32]
    mask_HW: NDArray[np.bool_]
    boxes: list[Region]


@dataclass(frozen=True)
class Scores:
    """What is known of a batch.

    Attributes:
        maps_BSS: Mean logit difference of the levels, blurred: 0 is the border between normal and abnormal.
        classification_B: Cosine to abnormal minus cosine to normal, of each image as a whole.
        abnormal_B: Cosine to abnormal alone.
        top_B: Mean of the hottest hundredth of each map's patches, before the blur.
    """

    maps_BSS: Tensor
    classification_B: Tensor
    abnormal_B: Tensor
    top_B: Tensor

    def __getitem__(self, rows: Tensor) -> "Scores":
        """Of some images of the batch."""
        return Scores(self.maps_BSS[rows], self.classification_B[rows], self.abnormal_B[rows], self.top_B[rows])
