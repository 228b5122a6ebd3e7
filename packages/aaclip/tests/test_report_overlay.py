"""The heatmap over a picture: nothing where nothing is, one scale for all, boxes where they belong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from aaclip.report.findings import Region
from aaclip.report.overlay import legend, overlay
from clip_common.heatmap import COLOURS, OPAQUE


def picture(width=60, height=40, colour=(90, 120, 150)):
    return Image.new("RGB", (width, height), colour)


def pixels(image):
    return np.asarray(image).astype(int)


def test_low_scores_leave_the_picture_as_it_is():
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8))
    for scores in (np.zeros((5, 5)), np.full((40, 60), -2.0)):
        shown = overlay(image, scores)
        assert (shown.mode, shown.size) == ("RGB", image.size)
        assert np.array_equal(pixels(shown), pixels(image))


def test_the_colour_by_hand():
    top = 255 * np.array(colormaps[COLOURS](1.0)[:3])
    expected = OPAQUE * top + (1 - OPAQUE) * np.array([90, 120, 150])
    for scores in (np.ones((4, 4)), np.full((4, 4), 7.0)):
        assert np.abs(pixels(overlay(picture(), scores)) - expected).max() <= 1
    half = pixels(overlay(picture(), np.full((4, 4), 2.0), low=1.0, high=3.0))
    assert np.array_equal(half, pixels(overlay(picture(), np.full((4, 4), 0.5))))


def test_the_scale_is_fixed():
    scores = np.zeros((40, 60))
    scores[:20] = 0.3
    alone = pixels(overlay(picture(), scores))
    scores[30:] = 1.0  # something worse elsewhere
    beside = pixels(overlay(picture(), scores))
    assert np.array_equal(alone[:20], beside[:20])
    assert np.abs(alone[:20] - pixels(picture())[:20]).mean() < np.abs(beside[30:] - pixels(picture())[30:]).mean()


def test_the_map_is_interpolated_to_the_picture():
    shown = pixels(overlay(picture(60, 40, (0, 0, 0)), np.array([[0.0, 1.0]])))
    brightness = shown.sum(axis=2)
    assert (brightness == brightness[:1]).all()  # no change from row to row
    assert (np.diff(brightness[0]) >= -2).all()  # up to rounding
    assert len(set(brightness[0].tolist())) > 25  # a slope, not a step


def test_a_picture_is_not_changed_in_place():
    image = picture()
    overlay(image, np.ones((2, 2)), regions=[Region(0, 0, 1, 1, 1, 1.0)])
    assert np.array_equal(pixels(image), pixels(picture()))


def test_boxes_are_in_pixels_of_the_map():
    region = Region(left=1, top=1, right=3, bottom=2, area=2, peak=1.0)  # of a map of 6 × 4: ten times smaller
    shown = pixels(overlay(picture(), np.zeros((4, 6)), regions=[region]))
    white, black = (shown == 255).all(axis=2), (shown == 0).all(axis=2)
    rows, columns = np.nonzero(white)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (10, 10, 29, 19)
    assert white.sum() == 2 * 20 + 2 * 8  # a thin line, not a filled box
    rows, columns = np.nonzero(black)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (9, 9, 30, 20)
    assert np.array_equal(shown[11:19, 11:29], pixels(picture())[11:19, 11:29])


@given(width=st.integers(1, 40), height=st.integers(1, 40), across=st.integers(1, 60), down=st.integers(1, 60))
def test_sizes_of_all_kinds_and_boxes_at_the_edge(width, height, across, down):
    region = Region(left=across - 1, top=0, right=across, bottom=down, area=down, peak=1.0)
    shown = overlay(picture(width, height), np.full((down, across), 0.4), regions=[region])
    assert shown.size == (width, height)


def test_the_legend_is_the_scale():
    first, *_, last = legend()
    assert first.endswith("/ 0.00)")
    red, green, blue, _, alpha = last.removeprefix("rgb(").removesuffix(")").split()
    assert [int(red), int(green), int(blue)] == pytest.approx(255 * np.array(colormaps[COLOURS](1.0)[:3]), abs=1)
    assert float(alpha) == OPAQUE


@pytest.mark.parametrize(
    ("scores", "scale", "message"),
    [(np.ones((1, 4, 4)), {}, r"expected a map \(H, W\)"), (np.ones((4, 4)), {"low": 1.0, "high": 1.0}, "low=1.0")],
)
def test_mistakes_are_told(scores, scale, message):
    with pytest.raises(ValueError, match=message):
        overlay(picture(), scores, **scale)
