"""The losses against the released definitions, written out, and by hand."""

import math

import pytest
import torch

from aaclip.config import LossConfig
from aaclip.training.losses import dice_loss, focal_loss, infonce_loss, orthogonal_loss, segmentation_loss
from clip_common.config import ConfigError


def released_focal(probabilities, target, gamma=2.0, smooth=1e-5):
    """Two channels, one-hot targets clamped, as AA-CLIP's released code has it."""
    flat = probabilities.permute(0, 2, 3, 1).reshape(-1, 2)
    one_hot = torch.nn.functional.one_hot(target.reshape(-1).long(), 2).float().clamp(smooth, 1 - smooth)
    pt = (one_hot * flat).sum(1) + smooth
    return (-((1 - pt) ** gamma) * pt.log()).mean()


def released_dice(channel, target):
    flat, wanted = channel.reshape(len(channel), -1), target.reshape(len(target), -1)
    dice = (2 * (flat * wanted).sum(1) + 1) / (flat.sum(1) + wanted.sum(1) + 1)
    return 1 - dice.sum() / len(channel)


def example():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(3, 6, 6, generator=generator, requires_grad=True)
    return p, (torch.rand(3, 6, 6, generator=generator) > 0.7).float()


def test_the_segmentation_loss_is_the_released_one_with_its_gradient():
    p, mask = example()
    both = torch.stack([1 - p, p], dim=1)
    expected = released_focal(both, mask) + released_dice(both[:, 0], 1 - mask) + released_dice(both[:, 1], mask)
    loss = segmentation_loss(p, mask)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, p), torch.autograd.grad(expected, p)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_the_focal_loss_of_one_pixel_by_hand():
    p = torch.tensor([[[0.25]]])
    assert focal_loss(p, torch.ones(1, 1, 1)).item() == pytest.approx(-(0.75**2) * math.log(0.25), rel=1e-3)
    assert focal_loss(p, torch.zeros(1, 1, 1)).item() == pytest.approx(-(0.25**2) * math.log(0.75), rel=1e-3)


def test_dynamic_alpha_weighs_the_rare_class_up_and_keeps_the_mean():
    p = torch.full((1, 2, 2), 0.5)
    mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    each = -(0.5**2) * math.log(0.5)
    assert focal_loss(p, mask, alpha="dynamic").item() == pytest.approx(each, rel=1e-3)  # mean weight one
    sure = torch.tensor([[[0.5, 0.0], [0.0, 0.0]]])  # only the defect is in doubt
    dynamic, one = (focal_loss(sure, mask, alpha=alpha).item() for alpha in ("dynamic", "one"))
    assert dynamic == pytest.approx(2 * one, rel=1e-2)  # a quarter of the pixels weighs a half


def test_masks_of_one_class_alone_are_finite():
    p = torch.rand(2, 4, 4)
    for mask in (torch.zeros(2, 4, 4), torch.ones(2, 4, 4)):
        assert segmentation_loss(p, mask, focal_alpha="dynamic").isfinite()


def test_the_dice_loss_by_hand():
    p, mask = torch.tensor([[[1.0, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
    assert dice_loss(p, mask).item() == pytest.approx(1 - 3 / 3.5)
    assert dice_loss(mask, mask).item() == 0.0


def test_the_orthogonal_loss_by_hand():
    right = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    same = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert orthogonal_loss(right).item() == 0.0
    assert orthogonal_loss(same).item() == 1.0
    assert orthogonal_loss(torch.cat([right, same])).item() == 0.25  # the mean is squared, not each


def test_infonce_by_hand():
    """One class in two dimensions, three normal prompts against one abnormal one: each side weighs one half."""
    normal = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    abnormal = torch.tensor([[0.0, 1.0]])
    text = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # t_normal (1, 0), t_abnormal (0, 1)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))  # cosines 1 and 0, divided by 0.5
    expected = ((2 * right + wrong) / 3 + right) / 2
    assert infonce_loss([normal, abnormal], text, temperature=0.5).item() == pytest.approx(expected)
    twice = infonce_loss([normal, abnormal] * 2, text.expand(2, -1, -1), temperature=0.5)
    assert twice.item() == pytest.approx(expected)


def test_infonce_pushes_the_sides_apart():
    torch.manual_seed(0)
    free = torch.randn(6, 8, requires_grad=True)
    optimizer = torch.optim.SGD([free], lr=0.5)

    def embed():
        sides = torch.nn.functional.normalize(free, dim=1).split([4, 2])
        means = torch.stack([torch.nn.functional.normalize(side.mean(0), dim=0) for side in sides], dim=1)
        return sides, means[None]

    cosines = []
    for _ in range(20):
        sides, text = embed()
        cosines.append((text[0, :, 0] @ text[0, :, 1]).item())
        optimizer.zero_grad()
        infonce_loss(sides, text, temperature=0.5).backward()
        optimizer.step()
    assert cosines[-1] < cosines[0] - 0.1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"infonce": -1.0}, "loss.infonce: expected a number from 0, got -1"),
        ({"infonce_temperature": 0.0}, "loss.infonce_temperature: expected a number above 0, got 0"),
    ],
)
def test_wrong_settings_of_infonce_are_one_line(setting, said):
    with pytest.raises(ConfigError, match=said):
        LossConfig(**setting)
