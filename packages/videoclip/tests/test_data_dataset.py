"""Samples and batches are functions of (seed, epoch, index), with a cache or without, in a worker or not."""

import itertools
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from clip_common.loader import ResumableLoader, ShuffledBatchSampler
from clip_common.synthetic import write_walking
from videoclip.config import AugmentConfig, DataConfig
from videoclip.data import Batch, ClipCache, ClipRecord, DataError, VideoMapDataset, collate, read_clips, read_pair

CONFIG = DataConfig(frames=4, size=32, augment=AugmentConfig(crop=0.7))


@pytest.fixture(scope="module")
def walking(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "walking"
    return write_walking(folder, subjects=6, clips_per_subject=3, size=48, fps=12, folds=2)


@pytest.fixture(scope="module")
def records(walking) -> list[ClipRecord]:
    return read_clips(replace(CONFIG, root=str(walking)))


@pytest.fixture(scope="module")
def cache(walking, records) -> ClipCache:
    return ClipCache(walking.parent / "cache", records, CONFIG, channels=1)


def dataset(records, *, seed=1, training=False, channels=1, cache=None, **knobs) -> VideoMapDataset:
    config = replace(CONFIG, **knobs)
    return VideoMapDataset(records, config, channels=channels, seed=seed, training=training, cache=cache)


def equal(one, other) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in pairs)


def test_a_sample_is_the_pair_of_its_files(records):
    sample = dataset(records)[4]
    pair = read_pair(records[4], CONFIG, channels=1, side=32)
    assert sample.video_3THW.dtype == torch.uint8
    assert torch.equal(sample.video_3THW, pair.frames_T3SS.transpose(0, 1))
    assert torch.equal(sample.map_CTHW, pair.map_CTSS.float() / 255)
    assert sample.map_CTHW.max() > 0.8
    assert (sample.valid, sample.label, sample.index) == (True, records[4].label, 4)
    assert sample.clip_id == records[4].clip_id


@pytest.mark.parametrize("control", ["none", "shuffled", "centre", "uniform", "random", "absent"])
def test_with_a_cache_or_without_the_samples_are_equal(records, cache, control):
    knobs = {"training": True, "control": control, "map_noise": 0.1, "map_scale": 0.5}
    decoded, cached = dataset(records, **knobs), dataset(records, cache=cache, **knobs)
    for each in (decoded, cached):
        each.set_epoch(3)
    for index in (0, 7, 17):
        assert equal(decoded[index], cached[index])


def test_a_sample_depends_on_seed_epoch_and_index_only(records, cache):
    one, two = (dataset(records, training=True, cache=cache, map_noise=0.1) for _ in range(2))
    one.set_epoch(2)
    two[3]  # another order, another epoch before
    two.set_epoch(2)
    for index in (5, 0, 5):
        assert equal(one[index], two[index])
    other = dataset(records, training=True, cache=cache, map_noise=0.1, seed=2)
    other.set_epoch(2)
    assert not torch.equal(one[5].video_3THW, other[5].video_3THW)
    two.set_epoch(3)
    assert not torch.equal(one[5].video_3THW, two[5].video_3THW)


def test_only_training_clips_are_augmented(records, cache):
    still = dataset(records, cache=cache)
    first = still[0]
    still.set_epoch(5)
    assert equal(first, still[0])
    moving = dataset(records, cache=cache, training=True)
    assert not torch.equal(moving[0].video_3THW, first.video_3THW)
    assert not torch.equal(moving[0].map_CTHW, first.map_CTHW)


@pytest.mark.parametrize("cached", [True, False])
def test_an_interrupted_epoch_goes_on_with_the_same_batches_from_workers(records, cache, cached):
    def loader(workers: int) -> ResumableLoader:
        data = dataset(records, training=True, cache=cache if cached else None)
        sampler = ShuffledBatchSampler(len(data), batch_size=4, seed=3)
        return ResumableLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=workers)

    whole, stopped, resumed = loader(0), loader(2), loader(2)
    whole.set_epoch(2)
    stopped.set_epoch(2)
    expected = list(whole)
    seen = list(itertools.islice(stopped, 2))
    resumed.load_state_dict(stopped.state_dict())
    for batch, one in zip([*seen, *resumed], expected, strict=True):
        assert equal(batch, one)


def test_a_batch_numbers_subjects_regions_and_maps(records):
    some = [
        replace(records[0], subject_id="a", regions_doctor1=("foot",), regions_doctor2=("wrist",)),
        replace(records[1], subject_id="b", regions_doctor1=("wrist", "foot"), regions_doctor2=("foot",), label=None),
        replace(records[2], subject_id="a", regions_doctor1=(), regions_doctor2=(), map=records[0].map),
        replace(records[3], subject_id="c", regions_doctor1=(), regions_doctor2=(), map=None, keypoints=None),
        replace(records[4], subject_id="c", regions_doctor1=("foot",), regions_doctor2=(), map=None, keypoints=None),
    ]
    data = dataset(some)
    batch = collate([data[index] for index in range(5)])
    assert batch.video_B3THW.shape == (5, 3, 4, 32, 32)
    assert batch.video_B3THW.dtype == torch.uint8
    assert batch.map_BCTHW.shape == (5, 1, 4, 32, 32)
    assert batch.map_BCTHW.dtype == torch.float32
    assert batch.valid_B.tolist() == [True, True, True, False, False]
    assert not batch.map_BCTHW[3:].any()
    assert batch.label_B.tolist() == [some[0].label, -1, *(record.label for record in some[2:])]
    assert batch.subject_B.tolist() == [0, 1, 0, 2, 2]
    assert batch.regions_B[0] == batch.regions_B[1]
    assert len(set(batch.regions_B.tolist())) == 4
    assert batch.map_B[0] == batch.map_B[2]
    assert len(set(batch.map_B.tolist())) == 4
    assert batch.clip_ids == tuple(record.clip_id for record in some)
    for name in ("label_B", "subject_B", "regions_B", "map_B"):
        assert getattr(batch, name).dtype == torch.long
    # what one doctor attended
    assert len(set(dataset(some[:2], maps="doctor1").regions)) == 2
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {moved.map_BCTHW.device.type, moved.label_B.device.type} == {"meta"}
    assert moved.clip_ids == batch.clip_ids


def test_clips_that_the_cache_left_out_are_no_samples(records, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"gone")
    some = [records[0], replace(records[1], video=broken), records[2]]
    config = replace(CONFIG, on_error="skip")
    cache = ClipCache(tmp_path / "cache", some, config, channels=1)
    data = VideoMapDataset(some, config, channels=1, seed=0, training=False, cache=cache)
    assert data.records == (records[0], records[2])
    assert data[1].clip_id == records[2].clip_id
    with pytest.raises(DataError, match=r"broken\.mp4"):
        dataset(some)[1]


# -- controls ------------------------------------------------------------------------------------------------------


def own(records, cache) -> list[torch.Tensor]:
    data = dataset(records, cache=cache)
    return [data[index].map_CTHW for index in range(len(records))]


def test_shuffled_maps_are_another_subjects_throughout(records, cache):
    data = dataset(records, cache=cache, control="shuffled")
    maps = own(records, cache)
    giver_of = {}
    for index, record in enumerate(records):
        shown = data.shown[record.clip_id]
        assert torch.equal(data[index].map_CTHW, maps[records.index(shown)])
        assert giver_of.setdefault(record.subject_id, shown.subject_id) == shown.subject_id != record.subject_id
    assert sorted(giver_of.values()) == sorted(giver_of)  # each subject's maps are shown with one other
    assert data.maps == dataset([data.shown[record.clip_id] for record in records]).maps
    assert len({record.clip_id for record in data.shown.values()}) == len(records)
    seeds = [dataset(records, control="shuffled", seed=seed).shown for seed in range(5)]
    assert any(shown != data.shown for shown in seeds)
    assert dataset(records[::-1], control="shuffled").shown == data.shown


def test_the_regions_are_those_of_the_map_that_is_shown(records):
    shuffled = dataset(records, control="shuffled")
    assert shuffled.regions == dataset([shuffled.shown[record.clip_id] for record in records]).regions
    assert len(set(dataset(records).regions)) < len(records)
    for control in ("centre", "uniform", "random", "absent"):
        assert dataset(records, control=control).regions == list(range(len(records)))


def test_shuffling_gives_no_map_to_a_clip_without_one(records):
    some = [*records[:6], replace(records[6], map=None, keypoints=None)]
    data = dataset(some, control="shuffled")
    assert not data[6].valid
    assert all(record.map is not None for record in list(data.shown.values())[:6])


def test_shuffling_needs_two_subjects(records):
    with pytest.raises(DataError, match=r"data.control=shuffled: maps of 1 subject\(s\)"):
        dataset(records[:3], control="shuffled")


def test_a_centre_prior_is_widest_in_the_middle(records, cache):
    map_CTHW = dataset(records, cache=cache, control="centre")[0].map_CTHW
    assert map_CTHW.shape == (1, 4, 32, 32)
    assert (map_CTHW == map_CTHW[:, :1]).all()
    assert torch.allclose(map_CTHW, map_CTHW.flip(-1))
    assert torch.allclose(map_CTHW, map_CTHW.transpose(-1, -2))
    # half a pixel from the middle in both directions, and a quarter of a side (one σ) further in one
    assert map_CTHW[0, 0, 16, 16] == pytest.approx(2.71828 ** -(2 * (0.5 / 32) ** 2 / (2 * 0.25**2)), abs=1e-4)
    assert map_CTHW[0, 0, 16, 24] / map_CTHW[0, 0, 16, 16] == pytest.approx(0.5709, abs=2e-3)


def test_uniform_and_absent_maps_say_nothing(records, cache):
    uniform, absent = (dataset(records, cache=cache, control=control)[0] for control in ("uniform", "absent"))
    assert (uniform.map_CTHW == 1).all()
    assert not absent.map_CTHW.any()
    assert not uniform.valid
    assert not absent.valid
    # nothing is added to what is absent
    noisy = dataset(records, cache=cache, control="absent", map_noise=0.5, training=True)[0]
    assert not noisy.map_CTHW.any()


def test_random_maps_are_blobs_of_each_clip(records, cache):
    data = dataset(records, cache=cache, control="random")
    one, other = data[0].map_CTHW, data[1].map_CTHW
    assert torch.equal(one, data[0].map_CTHW)
    assert not torch.equal(one, other)
    assert not torch.equal(one, dataset(records, cache=cache, control="random", seed=2)[0].map_CTHW)
    assert 0 <= one.min() < 0.2
    assert 0.8 < one.max() <= 1
    assert (one[..., 1:] - one[..., :-1]).abs().max() < 0.3  # smooth
    assert not torch.equal(one[:, 0], one[:, -1])
    maps = torch.stack(own(records, cache))
    drawn = torch.stack([data[index].map_CTHW for index in range(len(records))])
    # as much attention as the maps they stand for
    assert 0.5 < drawn.mean() / maps.mean() < 3.5
    correlations = [
        float(torch.corrcoef(torch.stack([a.ravel(), b.ravel()]))[0, 1]) for a, b in zip(drawn, maps, strict=True)
    ]
    assert abs(sum(correlations) / len(correlations)) < 0.35


def test_noise_has_its_deviation_and_belongs_to_the_clip(records, cache):
    clean, noisy = dataset(records, cache=cache), dataset(records, cache=cache, map_noise=0.1)
    index = 2
    inside = (clean[index].map_CTHW > 0.35) & (clean[index].map_CTHW < 0.65)  # where nothing is cut off
    noise = (noisy[index].map_CTHW - clean[index].map_CTHW)[inside]
    assert noise.std() == pytest.approx(0.1, rel=0.2)
    assert noisy[index].map_CTHW.min() == 0
    assert noisy[index].map_CTHW.max() <= 1
    noisy.set_epoch(4)
    again = dataset(records[index : index + 1], cache=cache, map_noise=0.1)[0]
    assert torch.equal(noisy[index].map_CTHW, again.map_CTHW)
    other = dataset(records, cache=cache, map_noise=0.1, seed=2)[index]
    assert not torch.equal(noisy[index].map_CTHW, other.map_CTHW)


def test_a_scale_multiplies_also_what_noise_made(records, cache):
    noisy, scaled = (dataset(records, cache=cache, map_noise=0.1, map_scale=scale)[0] for scale in (1.0, 3.0))
    assert torch.allclose(scaled.map_CTHW, 3 * noisy.map_CTHW)
    assert scaled.map_CTHW.max() > 2
    assert torch.equal(scaled.video_3THW, noisy.video_3THW)
