"""The released code's augmentation and last batch: each is one field, and is what that code computes.

Shapes: S pixels a side.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2 import functional

from aaclip.config import AugmentConfig, Config
from aaclip.data import Augment, read_dataset, training_records
from aaclip.models.backbone import make_model, make_preprocess
from aaclip.training.fits import make_dataset
from aaclip.training.modules import StageData
from clip_common.config import load_config

STILL = AugmentConfig(rotation=0, rotation_p=0, crop=1, translation_p=0, flip_horizontal=0, flip_vertical=0, jitter_p=0)
SIDE = 32


def noise(side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def view(config: AugmentConfig, image: Image.Image, *, seed: int = 0, colour: bool = False, **more) -> Image.Image:
    augment = Augment(config, size=SIDE, colour=colour, **more)
    return augment(image, np.zeros((image.height, image.width), bool), torch.Generator().manual_seed(seed))[0]


def draws(seed: int) -> tuple[list[float], list[float]]:
    """The 13 numbers of a view, and the three coins after the order of the colours."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(13, generator=generator).tolist()
    torch.randperm(3, generator=generator)
    return numbers, torch.rand(3, generator=generator).tolist()


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
def test_outside_is_the_mean_colour_and_pixels_move_whole(bundle, statistics):
    """The released order: normalise, then rotate by nearest neighbour, and 0 comes in from outside."""
    config = load_config(Config, overrides=[f"preprocess.statistics={statistics}"])
    preprocess = make_preprocess(bundle, config.preprocess)
    turning = replace(STILL, rotation=30, rotation_p=1, fill="mean", resampling="nearest")
    for seed in range(5):
        angle = -30 + 60 * draws(seed)[0][5]
        expected_3SS = functional.affine(
            preprocess(noise()), angle=angle, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], fill=0.0
        )
        found_3SS = preprocess(view(turning, noise(), seed=seed, mean=preprocess.mean))
        same_SS = (found_3SS - expected_3SS).abs().amax(dim=0) < 0.01  # the mean colour has eight bits
        assert same_SS.float().mean() > 0.99  # a pixel on the border between two goes either way
    default = preprocess(view(replace(turning, fill="edge", resampling="bicubic"), noise(), seed=seed))
    assert (default - expected_3SS).abs().mean() > 0.1


@pytest.mark.parametrize("fill", ["mean", "edge"])
def test_a_shift_brings_in_the_fill(fill):
    shifting = replace(STILL, translation=0.25, translation_p=1, fill=fill)
    image = Image.new("RGB", (SIDE, SIDE), (200, 10, 60))
    colours = {tuple(colour) for seed in range(8) for colour in
               np.asarray(view(shifting, image, seed=seed, mean=(0.2, 0.4, 0.6))).reshape(-1, 3).tolist()}  # fmt: skip
    assert colours == {(200, 10, 60)} | ({(51, 102, 153)} if fill == "mean" else set())


@pytest.mark.parametrize("resampling", ["nearest", "bicubic"])
def test_only_bicubic_rotation_mixes_colours(resampling):
    two = np.zeros((SIDE, SIDE, 3), np.uint8)
    two[:, SIDE // 2 :] = 255
    found = view(replace(STILL, rotation=30, rotation_p=1, resampling=resampling), Image.fromarray(two), seed=1)
    assert (set(np.unique(np.asarray(found))) == {0, 255}) == (resampling == "nearest")


def test_three_coins_of_their_own_in_order_before_the_resize():
    each = replace(STILL, jitter=0.5, jitter_p=0.7, jitter_coins="each")
    large, tossed = noise(48), []
    for seed in range(60):
        numbers, coins = draws(seed)
        expected = large
        changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for change, number, coin in zip(changes, numbers[10:], coins, strict=True):
            if coin < 0.7:
                expected = change(expected).enhance(0.5 + number)
        expected = expected.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        found = view(each, large, seed=seed, colour=True)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(expected)).max() <= 1
        assert np.array_equal(view(each, large, seed=seed), large.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        tossed.append(sum(coin < 0.7 for coin in coins))
    assert set(tossed) >= {1, 2, 3}  # with `one` it is 0 or 3
    one = replace(each, jitter_coins="one")
    assert any(
        view(one, large, seed=seed, colour=True) != view(each, large, seed=seed, colour=True) for seed in range(5)
    )


@pytest.mark.parametrize(("override", "sizes"), [("data.drop_last=false", [8, 8, 4]), ("data.drop_last=true", [8, 8])])
def test_the_last_partial_batch(bundle, parts, override, sizes):
    config = load_config(Config, overrides=[override])
    records = training_records(read_dataset(parts), config.data)
    dataset = make_dataset(make_model(bundle, load_config(Config)), records, config, colour=False)
    data = StageData(dataset, batch_size=8, seed=0, workers=0, drop_last=config.data.drop_last)
    data.trainer = type("Alone", (), {"global_rank": 0, "world_size": 1})()
    assert [len(batch.names) for batch in data.train_dataloader()] == sizes


def test_the_released_defaults_are_those_of_the_preset():
    official = load_config(Config, config="official", package="aaclip")
    assert (official.data.mode, official.data.shot, official.trainer.seed) == ("few_shot", 32, 111)
    given = load_config(Config, config="official", overrides=["data.mode=full_shot", "data.shot=8"], package="aaclip")
    assert (given.data.mode, given.data.shot) == ("full_shot", 8)


@pytest.mark.filterwarnings("ignore:image score not fitted")
def test_a_run_trains_the_last_batch_and_fills_as_it_says(small, trained):
    """The fields reach a training: steps are counted in metrics.csv."""
    from clip_common.runs import read_rows

    for override, steps in (("data.drop_last=true", 4), ("data.drop_last=false", 6)):
        rows = read_rows(trained(override, "stages.image.epochs=0") / "metrics.csv")
        assert max(int(row["step"]) for row in rows) == steps
