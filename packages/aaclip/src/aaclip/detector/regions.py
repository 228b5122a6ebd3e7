"""Connected regions of a mask, with their boxes and peaks. H and W pixels of a map or mask."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from aaclip.report.findings import Region

EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def find_regions(mask_HW: ArrayLike, map_HW: ArrayLike, *, least: int = 1) -> list[Region]:
    """Return the connected regions of a mask, the highest peak first; pixels that touch at a corner are connected.

    Args:
        mask_HW: True on anomalous pixels.
        map_HW: Scores of the pixels.
        least: Fewest pixels of a region; smaller ones are left out.

    Raises:
        ValueError: Mask and map differ in shape.
    """
    from scipy.ndimage import find_objects

    mask, scores = np.asarray(mask_HW, dtype=bool), np.asarray(map_HW)
    if mask.ndim != 2 or mask.shape != scores.shape:
        raise ValueError(f"expected a mask and a map of one shape (H, W), got {mask.shape} and {scores.shape}")
    regions_HW = label_regions(mask)
    area_R = np.bincount(regions_HW.ravel())[1:]
    peak_R = np.full(len(area_R), -np.inf)
    np.maximum.at(peak_R, regions_HW[mask] - 1, scores[mask])  # scipy's own maximum sorts all pixels of the picture
    found = [
        Region(columns.start, rows.start, columns.stop, rows.stop, area=int(area), peak=float(peak))
        for (rows, columns), area, peak in zip(find_objects(regions_HW), area_R, peak_R, strict=True)
        if area >= least
    ]
    return sorted(found, key=lambda region: (-region.peak, -region.area, region.top, region.left))


def label_regions(mask_HW: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return each pixel's region, from 1; 0 outside the mask."""
    from scipy.ndimage import label

    regions_HW: NDArray[np.int32] = label(mask_HW, structure=EIGHT_NEIGHBOURS)[0]
    return regions_HW
