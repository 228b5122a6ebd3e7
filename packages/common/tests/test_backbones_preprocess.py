"""The pixels that a tower takes, against open_clip's own transforms."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from clip_common.backbones import Preprocess
from clip_common.backbones.preprocess import draw_crop

LEVEL = 1 / 255 / 0.26
"""One grey level after normalisation."""
SIZES = ((50, 40), (40, 50), (33, 33), (16, 120), (300, 217), (24, 24))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)

    def picture(width, height):
        coarse = rng.integers(0, 256, (max(2, height // 4), max(2, width // 4), 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return [picture(*size) for size in SIZES]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_equals_open_clip(pictures, mode, interpolation):
    from open_clip import image_transform

    theirs = image_transform(24, is_train=False, resize_mode=mode, interpolation=interpolation, fill_color=7)
    ours = Preprocess(size=24, resize_mode=mode, interpolation=interpolation, fill=7)
    for picture in pictures:
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)
        assert ours(picture).is_contiguous()


def test_a_margin_is_resized_and_cropped_away(pictures):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    ours = Preprocess(size=24, resize=28)
    steps = [Resize(28, interpolation=InterpolationMode.BICUBIC), CenterCrop(24), ToTensor()]
    theirs = Compose([*steps, Normalize(ours.mean, ours.std)])
    for picture in pictures:
        torch.testing.assert_close(ours(picture), theirs(picture), rtol=0, atol=1e-6)


def test_decoded_bytes_give_the_same_pixels_as_the_picture(pictures):
    for preprocess in (Preprocess(size=24), Preprocess(size=24, resize_mode="longest"), Preprocess(size=24, resize=30)):
        for picture in pictures:
            decoded = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            assert (preprocess(decoded) - preprocess(picture)).abs().max() <= 4 * LEVEL


@pytest.mark.parametrize(("corner", "start"), [("even", 2), ("down", 1)])
def test_half_a_pixel_is_rounded_as_the_models_library_does(corner, start):
    """A crop of 16 from 19 columns starts at 1.5: open_clip takes 2, transformers 1."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 19, 3), dtype=np.uint8)
    preprocess = Preprocess(size=16, corner=corner)
    expected = preprocess(Image.fromarray(pixels[:, start : start + 16]))
    torch.testing.assert_close(preprocess(Image.fromarray(pixels)), expected)
    torch.testing.assert_close(preprocess(torch.from_numpy(pixels).permute(2, 0, 1)), expected)


def test_training_equals_open_clip_for_the_same_draw(pictures):
    from open_clip import image_transform

    theirs, ours = image_transform(24, is_train=True), Preprocess(size=24, crop_scale=(0.9, 1.0))
    for seed, picture in enumerate(pictures):
        torch.manual_seed(seed)
        expected = theirs(picture)
        torch.testing.assert_close(ours(picture, generator=torch.Generator().manual_seed(seed)), expected)


def test_the_random_crop_draws_what_torchvision_draws():
    for seed in range(50):
        picture = torch.zeros(3, 20 + seed, 70 - seed)
        torch.manual_seed(seed)
        expected = RandomResizedCrop.get_params(picture, scale=[0.5, 1.0], ratio=[3 / 4, 4 / 3])
        generator = torch.Generator().manual_seed(seed)
        assert draw_crop(*picture.shape[1:], (0.5, 1.0), generator) == expected


def test_an_image_of_extreme_shape_is_cropped_at_its_centre():
    assert draw_crop(10, 400, (0.9, 1.0), None) == (0, 193, 10, 13)
    assert draw_crop(400, 10, (0.9, 1.0), None) == (193, 0, 13, 10)


def test_augmentation_is_a_function_of_the_generator(pictures):
    preprocess = Preprocess(size=24, crop_scale=(0.5, 1.0))
    first, again, other = (preprocess(pictures[0], generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_evaluation_does_not_touch_the_generator(pictures):
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    Preprocess(size=24)(pictures[0], generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_three_channels(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (10, 200, 30)).convert(mode).save(buffer, "TIFF")
    assert Preprocess(size=16)(Image.open(buffer)).shape == (3, 16, 16)


def test_the_key_names_every_setting():
    base = Preprocess(size=24)
    others = [
        Preprocess(size=25),
        Preprocess(size=24, mean=(0.5, 0.5, 0.5)),
        Preprocess(size=24, interpolation="bilinear"),
        Preprocess(size=24, resize_mode="squash"),
        Preprocess(size=24, crop_scale=(0.9, 1.0)),
        Preprocess(size=24, corner="down"),
    ]
    assert len({preprocess.key for preprocess in [base, *others]}) == 7
    assert Preprocess(size=24).key == base.key
