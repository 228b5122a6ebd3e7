"""Connected regions, by hand and against a flood fill."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaclip.detector.regions import find_regions
from aaclip.report.findings import Region


def drawn(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_regions_by_hand():
    mask_HW = drawn(
        "#...##",
        ".#..##",
        "......",
        "...#..",
    )
    map_HW = np.zeros((4, 6), np.float32)
    map_HW[1, 1], map_HW[0, 4], map_HW[3, 3] = 0.5, 0.75, 0.25
    map_HW[2, 0] = 1  # beside all regions
    assert find_regions(mask_HW, map_HW) == [
        Region(left=4, top=0, right=6, bottom=2, area=4, peak=0.75),
        Region(left=0, top=0, right=2, bottom=2, area=2, peak=0.5),  # they touch at a corner
        Region(left=3, top=3, right=4, bottom=4, area=1, peak=0.25),
    ]
    assert [region.area for region in find_regions(mask_HW, map_HW, least=2)] == [4, 2]
    assert find_regions(mask_HW, map_HW, least=5) == []


def test_a_box_cuts_out_its_region():
    mask_HW = drawn(".....", ".##..", "..##.")
    (region,) = find_regions(mask_HW, mask_HW.astype(float))
    assert mask_HW[region.top : region.bottom, region.left : region.right].sum() == region.area == mask_HW.sum()


def test_equal_peaks_are_ordered_by_size_then_place():
    found = find_regions(drawn("#.##.#"), np.ones((1, 6)))
    assert [region.left for region in found] == [2, 0, 5]


def test_negative_scores_have_peaks_and_an_empty_mask_nothing():
    assert find_regions(drawn("#."), np.array([[-3.0, 0.0]]))[0].peak == -3
    assert find_regions(np.zeros((4, 4), bool), np.ones((4, 4))) == []


@pytest.mark.parametrize("shape", [(4,), (4, 5), (1, 4, 4)])
def test_shapes_must_agree(shape):
    with pytest.raises(ValueError, match=r"expected a mask and a map of one shape \(H, W\)"):
        find_regions(np.ones(shape, bool), np.ones((4, 4)))


def flooded(mask_HW):
    """Sets of pixels that are connected over sides and corners."""
    left = set(zip(*np.nonzero(mask_HW), strict=True))
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            edge += near
        yield region


@given(seed=st.integers(0, 9999), share=st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_regions_are_those_of_a_flood(seed, share):
    generator = np.random.default_rng(seed)
    mask_HW, map_HW = generator.random((9, 13)) < share, generator.normal(size=(9, 13))
    expected = []
    for region in flooded(mask_HW):
        rows, columns = zip(*region, strict=True)
        peak = max(map_HW[pixel] for pixel in region)
        expected.append(Region(min(columns), min(rows), max(columns) + 1, max(rows) + 1, len(region), peak))
    assert find_regions(mask_HW, map_HW) == sorted(expected, key=lambda region: -region.peak)
