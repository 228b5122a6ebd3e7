"""The cache of stage 1's frozen patches: another key for whatever changes its rows, the same one for what does not."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aaclip.config import Config
from aaclip.data import read_dataset
from aaclip.models.backbone import load_backbone, make_model
from aaclip.training.features import FrozenViews
from aaclip.training.fits import make_dataset
from clip_common.config import ConfigError, load_config


@pytest.fixture
def root(parts, tmp_path) -> Path:
    """One kind, free to be changed."""
    return Path(shutil.copytree(parts / "mug", tmp_path / "größe" / "mug").parent)


@pytest.fixture
def views(root, small, tmp_path):
    """`views("surgery.blocks=2", …)` -> the cached views of the damaged mugs, under those overrides."""

    def get(*more: str, records=None, views: int = 1, colour: bool = False) -> FrozenViews:
        config = load_config(Config, overrides=[*small, *more])
        if records is None:
            records = read_dataset(root).of(split="test")
        model = make_model(load_backbone(config.backbone), config)
        dataset = make_dataset(model, records, config, colour=colour)
        return FrozenViews(tmp_path / "cache", dataset, model, views=views)

    return get


def files(views: FrozenViews) -> tuple[str, str]:
    return views.patches_NVLD.filename, views.masks_NP.filename


def test_the_same_again_is_read_from_the_disk(views, monkeypatch):
    first = views()
    monkeypatch.setattr(FrozenViews, "_compute", lambda *_, **__: pytest.fail("computed again"))
    assert files(views()) == files(first)


@pytest.mark.parametrize(
    "override",
    [
        "backbone.activation=quick_gelu",  # weights of the same fingerprint, other patches
        "backbone.image_size=48",
        "preprocess.statistics=imagenet",
        "surgery.blocks=2",
        "levels=[2,4]",
        "augment.rotation=9",
        "trainer.seed=7",
    ],
)
def test_every_setting_that_changes_a_row_makes_a_new_cache(views, override):
    plain, other = views(), views(override)
    assert set(files(plain)).isdisjoint(files(other))
    if override.startswith("backbone.activation"):
        assert not np.allclose(plain.patches_NVLD, other.patches_NVLD, atol=1e-3)


@pytest.mark.parametrize("override", ["adapters.kind=linear", "stages.text.lr=1e-2", "prompts.set=full"])
def test_settings_that_change_no_row_keep_the_cache(views, override):
    assert files(views()) == files(views(override))


def test_views_and_colours_make_a_new_cache(views):
    found = [files(one) for one in (views(), views(views=2), views(colour=True))]
    assert len(set(found)) == 3


def test_a_corrected_mask_is_what_training_sees(views, root):
    before = views("augment.rotation=0", "augment.crop=1", "augment.flip_horizontal=0")
    row = next(row for row, record in enumerate(before.dataset.records) if record.mask is not None)
    assert before[row].mask_HW.any()
    mask = before.dataset.records[row].mask
    with Image.open(mask) as old:
        Image.new("L", old.size).save(mask)
    after = views("augment.rotation=0", "augment.crop=1", "augment.flip_horizontal=0")
    assert not after[row].mask_HW.any()


def test_a_corrected_label_is_what_training_sees(views, root):
    records = read_dataset(root).of(split="test")
    row = next(row for row, record in enumerate(records) if record.mask is not None)
    relabelled = [
        replace(record, anomalous=False) if number == row else record for number, record in enumerate(records)
    ]
    before, after = views(records=records), views(records=relabelled)
    assert before[row].mask_HW.any()
    assert not after[row].mask_HW.any()  # the mask of a normal picture is ignored


def test_a_changed_image_of_the_same_time_makes_a_new_cache(views, root):
    before = views()
    image = before.dataset.records[0].image
    time = image.stat().st_mtime_ns
    Image.new("RGB", (48, 48)).save(image)
    os.utime(image, ns=(time, time))
    assert files(views()) != files(before)


def test_patches_that_depend_on_the_batch_are_not_cached_in_one_line():
    with pytest.raises(ConfigError, match=r"cache_features=2 with surgery\.axis=batch: patches depend on") as error:
        load_config(Config, overrides=["surgery.axis=batch", "stages.text.cache_features=2"])
    assert "\n" not in str(error.value)
    load_config(Config, config="official", package="aaclip")
    with pytest.raises(ConfigError, match=r"set cache_features=0 or axis=space"):
        load_config(Config, config="official", overrides=["stages.text.cache_features=1"], package="aaclip")
