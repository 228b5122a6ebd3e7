"""Samples and batches are functions of (seed, epoch, index); the cache holds what decoding gives."""

import errno
import itertools
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clip_common.training import ResumableLoader, ShuffledBatchSampler
from clipse.data import CLIPCollator, DataError, Flickr8kDataset, ImageCache, ImageRecord, load_captions


def to_tensor(image: Image.Image | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A stand-in for a preprocessing: pixels as floats, with noise where it is random."""
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)
    noise = 0 if generator is None else torch.rand((), generator=generator)
    return pixels.float() + noise


@pytest.fixture
def records(scenes) -> list[ImageRecord]:
    return load_captions(scenes).split("train")


def test_a_sample_depends_on_seed_epoch_and_index_only(records):
    one, two = (Flickr8kDataset(records, preprocess=to_tensor, seed=1, augment=True) for _ in range(2))
    one.set_epoch(2)
    two[3]  # another order, another epoch before
    two.set_epoch(2)
    for index in (5, 0, 5):
        assert torch.equal(one[index].image, two[index].image)
        assert one[index].captions == two[index].captions


def test_epochs_and_seeds_choose_other_captions_and_crops(records):
    dataset = Flickr8kDataset(records, preprocess=to_tensor, seed=1, augment=True)
    other = Flickr8kDataset(records, preprocess=to_tensor, seed=2, augment=True)
    seen = []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        seen.append(dataset[0].captions[0])
    assert len(set(seen)) > 2
    assert set(seen) <= set(records[0].captions)
    assert not torch.equal(dataset[0].image, other[0].image)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_with_the_same_batches(records, workers):
    def loader(workers: int) -> ResumableLoader:
        dataset = Flickr8kDataset(records, preprocess=to_tensor, seed=3, augment=True)
        sampler = ShuffledBatchSampler(len(dataset), batch_size=8, seed=3)
        return ResumableLoader(dataset, batch_sampler=sampler, collate_fn=CLIPCollator(list), num_workers=workers)

    whole, stopped, resumed = loader(0), loader(workers), loader(workers)
    whole.set_epoch(2)
    stopped.set_epoch(2)
    expected = list(whole)
    seen = list(itertools.islice(stopped, 3))
    resumed.load_state_dict(stopped.state_dict())
    for batch, one in zip([*seen, *resumed], expected, strict=True):
        assert batch.names == one.names
        assert batch.tokens == one.tokens
        assert torch.equal(batch.images_B3HW, one.images_B3HW)
    assert len({name for batch in expected for name in batch.names}) == len(records)  # each image once an epoch


def test_all_captions_of_an_image_share_its_row(records):
    dataset = Flickr8kDataset(records, preprocess=to_tensor, captions="all")
    batch = CLIPCollator(len)([dataset[0], dataset[1]])
    assert batch.images_B3HW.shape == (2, 3, 32, 32)
    assert batch.tokens == 10
    assert batch.owner_T.tolist() == [0] * 5 + [1] * 5
    assert batch.image_ids_B.tolist() == [records[0].id, records[1].id]
    assert batch.names == [records[0].name, records[1].name]


def test_the_cache_holds_what_decoding_gives(records, tmp_path):
    cache = ImageCache(tmp_path, records, side=224)
    for record in records[:3]:
        assert np.array_equal(cache[record].permute(1, 2, 0), np.array(record.load_image()))
    again = ImageCache(tmp_path, records, side=224, progress=lambda *at: pytest.fail("decoded twice"))
    assert torch.equal(again[records[0]], cache[records[0]])


def test_the_cache_shrinks_to_the_short_side_and_keeps_the_rest(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (100, 40), (9, 8, 7)).save(path)
    record = ImageRecord(0, "wide.png", path, ("a",), "train")
    assert ImageCache(tmp_path / "cache", [record], side=20)[record].shape == (3, 20, 50)


def test_a_pickled_cache_maps_its_file_again(records, tmp_path):
    cache = ImageCache(tmp_path, records, side=224)
    content = pickle.dumps(cache)
    assert len(content) < cache.pixels.nbytes / 4
    assert torch.equal(pickle.loads(content)[records[5]], cache[records[5]])


def test_a_cache_that_another_process_finishes_first_is_taken(records, tmp_path, monkeypatch):
    save = np.save

    def slowly(*arguments):
        monkeypatch.setattr(np, "save", save)
        ImageCache(tmp_path, records, side=224)
        save(*arguments)

    monkeypatch.setattr(np, "save", slowly)
    cache = ImageCache(tmp_path, records, side=224)
    assert np.array_equal(cache[records[0]].permute(1, 2, 0), np.array(records[0].load_image()))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_changed_image_makes_another_cache(scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "copy")
    records = load_captions(copy).split("train")
    before = ImageCache(tmp_path / "cache", records, side=224)
    Image.new("RGB", (32, 32), (255, 0, 0)).save(records[0].path)
    after = ImageCache(tmp_path / "cache", records, side=224)
    assert before.folder != after.folder
    assert after[records[0]].float().mean(dim=(1, 2))[0] > 250


def test_a_disk_too_small_is_refused_before_anything_is_written(records, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(DataError, match=r"data\.cache_dir"):
        ImageCache(tmp_path / "cache", records, side=224)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(records, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"No space.*cache"):
        ImageCache(tmp_path / "cache", records, side=224)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_image_that_breaks_after_loading_is_named(scenes, tmp_path):
    copy = shutil.copytree(scenes, tmp_path / "copy")
    records = load_captions(copy).split("train")
    records[0].path.write_bytes(b"gone")
    with pytest.raises(DataError, match=records[0].name):
        Flickr8kDataset(records, preprocess=to_tensor)[0]


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert ImageRecord(0, "turned.jpg", path, ("a",), "train").load_image().size == (20, 40)
