"""Random views: the map stays on the frames, all frames move as one, and colours change on frames only."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videoclip.config import AugmentConfig
from videoclip.data.augment import augment

SIDE = 48


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(row: int, column: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Black frames and an empty map, with a square of 3 x 3 pixels at one place in both."""
    frames = torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8)
    map_ = torch.zeros(2, 3, SIDE, SIDE)
    frames[..., row - 1 : row + 2, column - 1 : column + 2] = 255
    map_[..., row - 1 : row + 2, column - 1 : column + 2] = 1
    return frames, map_


@given(seed=st.integers(0, 2**31), row=st.integers(2, SIDE - 3), column=st.integers(2, SIDE - 3))
def test_the_map_stays_on_the_frames(seed, row, column):
    frames, map_ = marked(row, column)
    seen, mapped = augment(frames, map_, AugmentConfig(crop=0.5, colour=0), rng(seed))
    assert seen.shape == frames.shape
    assert seen.dtype == torch.uint8
    assert mapped.shape == map_.shape
    # uint8 rounds after each of the two passes of the filter
    assert (seen[:, :1].transpose(0, 1).float() / 255 - mapped[:1]).abs().max() < 0.02
    assert (seen == seen[:1, :1]).all()
    assert (mapped == mapped[:1, :1]).all()


def test_a_mirrored_pixel_is_where_it_must_be():
    frames, map_ = marked(10, 7)
    places = set()
    for seed in range(20):
        seen, mapped = augment(frames, map_, AugmentConfig(crop=1, colour=0), rng(seed))
        columns = seen[0, 0, 10].nonzero().flatten().tolist()
        assert mapped[0, 0, 10].nonzero().flatten().tolist() == columns
        places.add(tuple(columns))
    assert places == {(6, 7, 8), (SIDE - 9, SIDE - 8, SIDE - 7)}


def test_a_crop_keeps_no_less_than_its_share_and_reaches_every_edge():
    ramp = torch.linspace(0, 1, SIDE).expand(1, 2, SIDE, SIDE)
    frames = (ramp * 255).to(torch.uint8).transpose(0, 1).expand(2, 3, SIDE, SIDE)
    spans = []
    for seed in range(300):
        _, mapped = augment(frames, ramp, AugmentConfig(flip=False, crop=0.6, colour=0), rng(seed))
        spans.append((float(mapped.min()), float(mapped.max())))
    shares = [high - low for low, high in spans]
    assert 0.56 < min(shares) < 0.64
    assert max(shares) > 0.97
    assert min(low for low, _ in spans) < 0.01
    assert max(high for _, high in spans) > 0.99
    assert max(low for low, _ in spans) > 0.3


def test_colour_changes_all_frames_alike_and_no_map():
    frames = torch.full((4, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    frames[..., :24] = 140
    map_ = torch.rand(1, 4, SIDE, SIDE)
    values = set()
    for seed in range(40):
        seen, mapped = augment(frames, map_, AugmentConfig(flip=False, crop=1, colour=0.2), rng(seed))
        assert torch.equal(mapped, map_)
        assert (seen == seen[:1]).all()
        values.add(int(seen[0, 0, 0, -1]))
        # brightness at most 0.8 to 1.2 times, and contrast around a mean of 120 likewise
        assert 0.8 * 100 - 5 <= seen[0, 0, 0, -1] <= 1.2 * 100 + 5
    assert len(values) > 15


def test_nothing_to_change_changes_nothing():
    frames, map_ = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8), torch.rand(1, 2, SIDE, SIDE)
    for seed in range(5):
        seen, mapped = augment(frames, map_, AugmentConfig(flip=False, crop=1, colour=0), rng(seed))
        assert torch.equal(seen, frames)
        assert torch.equal(mapped, map_)


@pytest.mark.parametrize("knob", [{"flip": False}, {"crop": 1.0}, {"colour": 0.0}])
def test_one_knob_does_not_shift_what_the_others_draw(knob):
    generators = [rng(3), rng(3)]
    frames, map_ = marked(10, 7)
    for config, generator in zip((AugmentConfig(), AugmentConfig(**knob)), generators, strict=True):
        augment(frames, map_, config, generator)
    assert torch.equal(*(generator.get_state() for generator in generators))


def test_a_view_follows_from_the_generator_alone():
    frames, map_ = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8), torch.rand(1, 2, SIDE, SIDE)
    one, two, other = (augment(frames, map_, AugmentConfig(), rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])
