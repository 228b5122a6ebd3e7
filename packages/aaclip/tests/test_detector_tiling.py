"""Tiles cover a picture, blend without seams, and find what the whole picture squashed loses."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aaclip.detector.calibration import Threshold
from aaclip.detector.tiling import OVERLAP, Window, blend_tiles, list_windows


def test_by_hand():
    assert list_windows(width=100, height=30, tile=40) == [
        Window(0, 0, 40, 30),
        Window(30, 0, 70, 30),
        Window(60, 0, 100, 30),
    ]
    # two tiles of three columns, two of which both cover: weights 1, 2, 1 (over two) and values 0 and 6
    tiles = [(Window(0, 0, 3, 1), np.zeros((1, 3), np.float32)), (Window(1, 0, 4, 1), np.full((1, 3), 6, np.float32))]
    np.testing.assert_allclose(blend_tiles(tiles, width=4, height=1), [[0, 2, 4, 6]])


@given(width=st.integers(1, 300), height=st.integers(1, 300), tile=st.integers(16, 120))
def test_every_pixel_is_covered_and_neighbours_overlap(width, height, tile):
    found = list_windows(width=width, height=height, tile=tile)
    covered = np.zeros((height, width), int)
    for left, top, right, bottom in found:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == min(tile, width)
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    starts = sorted({window.left for window in found})
    assert all(after - before <= (1 - OVERLAP) * tile + 1 for before, after in pairwise(starts))


@given(value=st.floats(-5, 5, width=32), width=st.integers(20, 90), height=st.integers(20, 90))
def test_tiles_that_agree_blend_to_what_they_say(value, width, height):
    tiles = [
        (place, np.full((place.bottom - place.top, place.right - place.left), value, np.float32))
        for place in list_windows(width=width, height=height, tile=24)
    ]
    np.testing.assert_allclose(blend_tiles(tiles, width=width, height=height), value, rtol=1e-5, atol=1e-6)


def test_a_tile_as_large_as_the_picture_is_the_picture(detector):
    picture = Image.effect_noise((64, 48), 80).convert("RGB")
    whole, tiled = (detector.predict(picture, name="mug", tile=tile) for tile in (None, 64))
    assert tiled.score == pytest.approx(whole.score, abs=1e-6)
    np.testing.assert_allclose(tiled.heatmap_HW, whole.heatmap_HW, atol=1e-5)


def test_the_score_is_the_worst_tiles(detector):
    torch.manual_seed(0)
    picture = Image.effect_noise((96, 80), 80).convert("RGB")
    found = detector.predict(picture, name="mug", tile=48)
    assert found.heatmap_HW.shape == (80, 96)
    alone = [
        detector.predict(picture.crop(place), name="mug").score for place in list_windows(width=96, height=80, tile=48)
    ]
    assert len(alone) > 4
    assert found.score == pytest.approx(max(alone), abs=1e-6)
    again = detector.predict(picture, name="mug", tile=48, batch_size=3)
    assert again.score == pytest.approx(found.score, abs=1e-6)


def test_a_threshold_is_of_its_tiles(detector):
    picture = Image.effect_noise((96, 80), 80).convert("RGB")
    detector.threshold = Threshold(0.5, method="normal_quantile", tile=None)
    with pytest.raises(ValueError, match="calibrated with tile=None, not 48"):
        detector.predict(picture, name="mug", tile=48)
    assert detector.predict(picture, name="mug", tile=48, threshold=0.0).verdict == "anomalous"
    with pytest.raises(ValueError, match="tile=4: expected"):
        detector.predict(picture, name="mug", tile=4, threshold=0.5)
