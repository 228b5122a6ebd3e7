"""Maps: the collapsed test map against the released one level by level, the training map against softmax."""

import pytest
import torch
from torch.nn.functional import interpolate, normalize
from torchvision.transforms.v2.functional import gaussian_blur

from aaclip.models.maps import anomaly_map, differences, probability_map


def example(levels=4, batch=2, side=7, width=16):
    generator = torch.Generator().manual_seed(0)
    patches = [normalize(torch.randn(batch, side * side, width, generator=generator), dim=-1) for _ in range(levels)]
    return patches, normalize(torch.randn(batch, width, 2, generator=generator), dim=1)


def released(patches, text, size, *, test, kernel=7, sigma=1.0):
    """One level, as the released code has it."""
    scores = 100.0 * patches @ text
    side = int(scores.shape[1] ** 0.5)
    scores = scores.permute(0, 2, 1).reshape(len(scores), 2, side, side)
    if test:
        scores = ((scores[:, 1] + 1 - scores[:, 0]) / 2)[:, None]
        scores = gaussian_blur(scores, [kernel, kernel], [sigma, sigma])
    scores = interpolate(scores, size=size, mode="bilinear", align_corners=True)
    return scores if test else scores.softmax(dim=1)


@pytest.mark.parametrize(("domain", "kernel", "sigma"), [("industrial", 7, 1.0), ("medical", 9, 1.5)])
def test_the_collapsed_map_is_the_released_sum_of_levels(domain, kernel, sigma):
    patches, text = example()
    theirs = sum(released(p, text, 30, test=True, kernel=kernel, sigma=sigma)[:, 0] for p in patches)
    ours = anomaly_map([differences(p, text) for p in patches], size=30, domain=domain)
    torch.testing.assert_close(4 * (ours + 1) / 2, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


def test_the_training_map_is_the_softmax_of_both_channels():
    patches, text = example(levels=1)
    theirs = released(patches[0], text, 21, test=False)[:, 1]
    torch.testing.assert_close(probability_map(differences(patches[0], text), size=21), theirs, atol=1e-5, rtol=1e-4)


def test_weights_of_levels():
    patches, text = example()
    levels = [differences(p, text) for p in patches]
    alone = anomaly_map(levels[2:3], size=14)
    torch.testing.assert_close(anomaly_map(levels, size=14, weights_K=torch.tensor([0.0, 0.0, 1.0, 0.0])), alone)
    torch.testing.assert_close(
        anomaly_map(levels, size=14, weights_K=torch.full((4,), 0.25)), anomaly_map(levels, size=14)
    )


def test_a_grid_smaller_than_the_kernel():
    patches, text = example(side=2)
    assert anomaly_map([differences(p, text) for p in patches], size=16, domain="medical").isfinite().all()


def test_a_hot_patch_is_where_it_was():
    difference = torch.zeros(1, 9, 9)
    difference[0, 3, 5] = 10.0
    found = anomaly_map([difference], size=81)[0]
    row, column = divmod(int(found.argmax()), 81)
    assert (row, column) == (30, 50)
