"""Geometry acts on picture and mask alike; everything is a function of the generator; datasets and batches of views."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from aaclip.config import AugmentConfig
from aaclip.data import AnomalyDataset, Augment, DataError, Record, collate
from clip_common.images import read_image
from clip_common.loader import ResumableLoader, ShuffledBatchSampler

STILL = AugmentConfig(
    rotation=0, rotation_p=0, crop=1, translation=0, translation_p=0, flip_horizontal=0, flip_vertical=0, jitter_p=0
)


def noise(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def blob(side: int) -> np.ndarray:
    """A lopsided defect: no flip or turn leaves it as it is."""
    y, x = np.mgrid[:side, :side] / side
    return ((x > 0.3) & (x < 0.7) & (y > 0.25) & (y < 0.35)) | ((x > 0.3) & (x < 0.4) & (y > 0.25) & (y < 0.75))


def white_on(mask_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(mask_HW[..., None] * np.uint8(255), 3, axis=2))


def draw(config: AugmentConfig, image: Image.Image, mask: np.ndarray | None, *, size: int, seed: int = 0, colour=False):
    view, marked = Augment(config, size=size, colour=colour)(image, mask, torch.Generator().manual_seed(seed))
    assert view.size == (size, size)
    assert (marked.shape, marked.dtype) == ((size, size), bool)
    return np.asarray(view), marked


def test_without_any_of_it_only_the_size_changes():
    image, mask = noise(9, 6), np.random.default_rng(1).random((6, 9)) > 0.5
    view, marked = draw(STILL, image, mask, size=4)
    assert np.array_equal(view, image.resize((4, 4), Image.Resampling.BICUBIC))
    rows, columns = [int((k + 0.5) * 6 / 4) for k in range(4)], [int((k + 0.5) * 9 / 4) for k in range(4)]
    assert np.array_equal(marked, mask[np.ix_(rows, columns)])  # the pixel at each centre


def test_a_normal_picture_has_nothing_marked():
    assert not draw(AugmentConfig(), noise(), None, size=8)[1].any()


@pytest.mark.parametrize(("field", "axis"), [("flip_horizontal", 1), ("flip_vertical", 0)])
def test_flips(field, axis):
    image, mask = noise(), blob(8)
    view, marked = draw(replace(STILL, **{field: 1.0}), image, mask, size=8)
    assert np.array_equal(view, np.flip(np.asarray(image), axis=axis))
    assert np.array_equal(marked, np.flip(mask, axis=axis))


def test_a_crop_is_a_window_of_the_larger_resize():
    image, mask = noise(15, 15), blob(15)
    windows = set()
    for seed in range(200):
        view, marked = draw(replace(STILL, crop=1.25), image, mask, size=8, seed=seed)
        large = np.asarray(image.resize((10, 10), Image.Resampling.BICUBIC))
        (at,) = [
            (y, x)
            for y, x in itertools.product(range(3), repeat=2)
            if np.array_equal(view, large[y : y + 8, x : x + 8])
        ]
        centres = [int((k + 0.5) * 1.5) for k in range(10)]
        assert np.array_equal(marked, mask[np.ix_(centres, centres)][at[0] : at[0] + 8, at[1] : at[1] + 8])
        windows.add(at)
    assert len(windows) == 9


def test_a_shift_repeats_the_edge_and_marks_nothing_there():
    image, mask = noise(10, 10), np.ones((10, 10), dtype=bool)
    shifts = set()
    for seed in range(300):
        view, marked = draw(replace(STILL, translation=0.2, translation_p=1), image, mask, size=10, seed=seed)
        found = []
        for y, x in itertools.product(range(-2, 3), repeat=2):
            rows, columns = np.arange(10) - y, np.arange(10) - x
            expected = np.asarray(image)[np.ix_(rows.clip(0, 9), columns.clip(0, 9))]
            if np.array_equal(view, expected):
                inside = np.isin(rows, range(10))[:, None] & np.isin(columns, range(10))[None, :]
                assert np.array_equal(marked, inside)
                found.append((y, x))
        shifts.add(*found)
    assert len(shifts) == 25


def test_a_turn_by_a_right_angle_moves_pixels_exactly():
    image, mask = noise(), blob(8)
    config = replace(STILL, rotation=90, rotation_p=1)
    for ends in (np.rot90, lambda array: np.rot90(array, k=-1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "aaclip.data.augment._interpolate", lambda low, high, _, k=ends: high if k is not np.rot90 else low
            )
            view, marked = draw(config, image, mask, size=8)
        assert np.array_equal(marked, ends(mask))
        assert np.abs(view.astype(int) - ends(np.asarray(image)).astype(int)).max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    side=st.integers(60, 200),
    rotation=st.floats(0, 180),
    translation=st.floats(0, 0.3),
    crop=st.floats(1, 1.5),
)
def test_a_mask_drawn_as_a_picture_stays_on_itself(seed, side, rotation, translation, crop):
    config = AugmentConfig(
        rotation=rotation, translation=translation, translation_p=1, crop=crop, flip_horizontal=0.5, flip_vertical=0.5
    )
    mask = blob(side)
    view, marked = draw(config, white_on(mask), mask, size=100, seed=seed)
    # the defect is clear of the border, and what is filled in repeats black: only the outline may differ
    assert ((view[..., 0] > 127) != marked).sum() <= 0.25 * max(marked.sum(), 100)
    assert marked.any()


def test_no_defect_is_shown_a_second_time_and_no_corner_is_black():
    mask = np.zeros((64, 64), dtype=bool)
    mask[4:10, 20:40] = True  # near enough to the border for a reflection to show it again
    picture = np.full((64, 64, 3), 120, dtype=np.uint8)
    picture[mask] = 255
    for seed in range(30):
        view, marked = draw(
            AugmentConfig(rotation=30, translation=0.15, translation_p=1),
            Image.fromarray(picture),
            mask,
            size=64,
            seed=seed,
        )
        assert view.min() > 90  # bicubic undershoots a little beside the white
        assert ((view[..., 0] > 200) & ~marked).sum() <= 40  # the outline


@pytest.mark.parametrize("colour", [True, False])
def test_colour_changes_only_where_it_is_asked_for(colour):
    image = noise()
    view, _ = draw(replace(STILL, jitter=0.5, jitter_p=1), image, None, size=8, colour=colour)
    assert np.array_equal(view, np.asarray(image)) != colour


def test_colour_is_brightness_contrast_and_saturation_in_some_order():
    image = noise()
    orders = set()
    for seed in range(60):
        view, _ = draw(replace(STILL, jitter=0.4, jitter_p=1), image, None, size=8, colour=True, seed=seed)
        factors = [0.6 + 0.8 * number for number in torch.rand(13, generator=torch.Generator().manual_seed(seed))[10:]]
        changes = list(zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True))
        fitting = []
        for order in itertools.permutations(range(3)):
            expected = image
            for which in order:
                expected = changes[which][0](expected).enhance(float(changes[which][1]))
            if np.abs(np.asarray(expected).astype(int) - view.astype(int)).max() <= 1:
                fitting.append(order)
        assert fitting
        orders.add(fitting[0])
    assert len(orders) >= 4


def test_shares_are_shares():
    image = noise()
    flipped = sum(
        np.array_equal(
            draw(replace(STILL, flip_horizontal=0.25), image, None, size=8, seed=seed)[0], np.asarray(image)[:, ::-1]
        )
        for seed in range(400)
    )
    assert 70 < flipped < 130  # 100 ± 3.5 standard deviations


def test_a_view_is_a_function_of_the_generator():
    config = AugmentConfig(translation=0.1)
    for seed in range(5):
        torch.manual_seed(seed)  # the global generator has no part in it
        one, two = (draw(config, noise(), blob(8), size=8, seed=3, colour=True) for _ in range(2))
        assert np.array_equal(one[0], two[0])
        assert np.array_equal(one[1], two[1])
        if seed == 0:
            first = one
        assert np.array_equal(one[0], first[0])
    assert not np.array_equal(draw(config, noise(), None, size=8, seed=4, colour=True)[0], first[0])


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


@pytest.fixture
def records(tmp_path) -> list[Record]:
    made = []
    for number in range(8):
        image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png"
        noise(20, 12, seed=number).save(image)
        Image.fromarray(np.eye(12, 20, k=number, dtype=np.uint8)).save(mask)
        anomalous = number % 2 == 1
        made.append(Record(image, f"class {number % 3}", "train", anomalous, mask=mask if anomalous else None))
    return made


def dataset_of(records, *, seed: int = 1, augment: bool = True) -> AnomalyDataset:
    chosen = Augment(AugmentConfig(), size=16, colour=True) if augment else None
    return AnomalyDataset(records, preprocess=to_tensor, size=16, seed=seed, augment=chosen)


def test_a_sample_is_the_picture_and_its_mask(records):
    sample = dataset_of(records, augment=False)[3]
    resized = read_image(records[3].image).resize((16, 16), Image.Resampling.BICUBIC)
    assert torch.equal(sample.image_3HW, to_tensor(resized))
    columns, rows = [int((k + 0.5) * 20 / 16) for k in range(16)], [int((k + 0.5) * 12 / 16) for k in range(16)]
    assert np.array_equal(sample.mask_HW, np.eye(12, 20, k=3, dtype=bool)[np.ix_(rows, columns)])
    assert sample.mask_HW.dtype == torch.bool
    assert (sample.anomalous, sample.mask_known, sample.class_name, sample.index) == (True, True, "class 0", 3)
    assert sample.name == str(records[3].image)


def test_only_an_anomalous_picture_without_a_mask_has_an_unknown_one(records):
    samples = dataset_of([records[0], replace(records[1], mask=None), records[1]])
    assert [samples[index].mask_known for index in range(3)] == [True, False, True]
    assert [bool(samples[index].mask_HW.any()) for index in range(3)] == [False, False, True]


def test_the_label_decides_over_a_normal_pictures_mask(records):
    assert not dataset_of([replace(records[0], mask=records[1].mask)], augment=False)[0].mask_HW.any()


def test_a_sample_depends_on_seed_epoch_and_index_only(records):
    one, two = dataset_of(records), dataset_of(records)
    one.set_epoch(2)
    two[3]  # another order, another epoch before
    two.set_epoch(2)
    for index in (5, 0, 5):
        assert torch.equal(one[index].image_3HW, two[index].image_3HW)
        assert torch.equal(one[index].mask_HW, two[index].mask_HW)
    views = [one[0].image_3HW, dataset_of(records, seed=2)[0].image_3HW, dataset_of(records)[0].image_3HW]
    same = dataset_of([records[0]] * 2)
    views += [same[1].image_3HW]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_with_the_same_batches(records, workers):
    def loader(workers: int) -> ResumableLoader:
        sampler = ShuffledBatchSampler(len(records), batch_size=2, seed=3)
        return ResumableLoader(dataset_of(records), batch_sampler=sampler, collate_fn=collate, num_workers=workers)

    whole, stopped, resumed = loader(0), loader(workers), loader(workers)
    whole.set_epoch(2)
    stopped.set_epoch(2)
    expected = list(whole)
    seen = list(itertools.islice(stopped, 2))
    resumed.load_state_dict(stopped.state_dict())
    for batch, one in zip([*seen, *resumed], expected, strict=True):
        assert batch.names == one.names
        assert torch.equal(batch.images_B3HW, one.images_B3HW)
        assert torch.equal(batch.masks_BHW, one.masks_BHW)


def test_a_batch_is_samples_side_by_side(records):
    dataset = dataset_of([records[0], records[1], replace(records[3], mask=None)])
    samples = [dataset[index] for index in (2, 0, 1)]
    batch = collate(samples)
    assert batch.images_B3HW.shape == (3, 3, 16, 16)
    assert (batch.masks_BHW.shape, batch.masks_BHW.dtype) == ((3, 16, 16), torch.float32)
    assert torch.equal(batch.masks_BHW[2] > 0, samples[2].mask_HW)
    assert (batch.anomalous_B.tolist(), batch.anomalous_B.dtype) == ([1, 0, 1], torch.int64)
    assert batch.masks_known_B.tolist() == [False, True, True]
    assert batch.class_names == ["class 0", "class 0", "class 1"]
    assert batch.indices_B.tolist() == [2, 0, 1]
    assert batch.names == [sample.name for sample in samples]


def test_a_mask_of_another_size_than_its_picture_is_named(records, tmp_path):
    Image.new("L", (12, 20)).save(tmp_path / "1_mask.png")
    with pytest.raises(DataError, match=r"1_mask.png: a mask of 12x20 pixels, but its image has 20x12"):
        dataset_of(records)[1]
