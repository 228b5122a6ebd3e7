"""How well a map that the model makes agrees with the clinician's: by hand, and maps without content."""

import math

import pytest
import torch

from videoclip.scoring.agreement import measure_agreement


def maps_of(*rows):
    return torch.tensor(rows).view(len(rows), 1, 1, 1, -1)


def test_by_hand():
    """Scaled to 0 to 1: 0 .5 1 0 and 1 .5 .6 0. Cells above half: {1, 2} and {0, 1, 2}; the hottest is the first."""
    (found,) = measure_agreement(maps_of([9.0, 5.0, 5.8, 1.0]), maps_of([0.0, 0.25, 0.5, 0.0])).tolist()
    a, e = [0, 0.5, 1, 0], [1, 0.5, 0.6, 0]
    a, e = ([value - sum(each) / 4 for value in each] for each in (a, e))
    corr = sum(x * y for x, y in zip(a, e, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in e))
    assert found == pytest.approx([corr, 2 / 3, 0], abs=1e-6)


def test_a_map_agrees_with_itself_whatever_its_scale_and_size():
    maps = torch.rand(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.interpolate(maps, size=(2, 8, 8), mode="trilinear", align_corners=False)
    torch.testing.assert_close(measure_agreement(3 * coarse, maps), torch.ones(2, 3))


def test_channels_of_the_clinicians_are_averaged():
    maps = torch.rand(1, 2, 1, 2, 4)
    one, other = (measure_agreement(maps[:, :1], each) for each in (maps, maps.mean(1, keepdim=True)))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("made", "given"), [([1.0, 1.0, 1.0], [0.0, 1.0, 0.0]), ([0.0, 1.0, 0.0], [0.0, 0.0, 0.0])])
def test_a_constant_map_has_no_agreement(made, given):
    assert measure_agreement(maps_of(made), maps_of(given)).isnan().all()
