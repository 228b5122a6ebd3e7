"""Scores in colour over a picture."""

import numpy as np
import pytest
from matplotlib import colormaps

from clip_common.heatmap import COLOURS, OPAQUE, blend, colours

PICTURE = np.random.default_rng(0).integers(256, size=(2, 5, 7, 3), dtype=np.uint8)


def test_by_hand():
    for level in (0.0, 0.2, 1.0):
        colour = 255 * np.array(colormaps[COLOURS](round(255 * level))[:3])
        expected = (1 - OPAQUE * level) * PICTURE + OPAQUE * level * colour
        shown = blend(PICTURE, np.full(PICTURE.shape[:3], level))
        assert shown.dtype == np.uint8
        assert np.abs(shown - expected).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("beyond", "bound"), [(-3.0, 0.0), (7.0, 1.0)])
def test_scores_beyond_the_scale_are_its_ends(beyond, bound):
    shape = PICTURE.shape[:3]
    assert np.array_equal(blend(PICTURE, np.full(shape, beyond)), blend(PICTURE, np.full(shape, bound)))
    assert np.array_equal(blend(PICTURE, np.zeros(shape)), PICTURE)


def test_pictures_one_by_one_or_together():
    levels = np.random.default_rng(1).random(PICTURE.shape[:3])
    one_by_one = [blend(picture, level) for picture, level in zip(PICTURE, levels, strict=True)]
    assert np.array_equal(blend(PICTURE, levels), np.stack(one_by_one))


def test_brighter_is_more():
    brightness = colours().sum(axis=1)
    assert brightness[-1] > 2 * brightness[0]
    assert (np.diff(brightness) > 0).mean() > 0.95
