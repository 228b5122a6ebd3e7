"""The cache holds what decoding gives, each clip whole or not at all, and decodes only clips that would differ."""

import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_common.synthetic import write_walking
from videoclip.config import DataConfig
from videoclip.data import ClipCache, ClipRecord, DataError, find_problems, read_clips, read_pair
from videoclip.data import cache as cache_module

CONFIG = DataConfig(frames=4, size=32)


@pytest.fixture(scope="module")
def walking(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "walking"
    return write_walking(folder, subjects=6, clips_per_subject=2, size=48, fps=12, folds=2)


@pytest.fixture
def records(walking, tmp_path) -> list[ClipRecord]:
    root = shutil.copytree(walking, tmp_path / "walking")
    return read_clips(replace(CONFIG, root=str(root)))


def no_decoding(done: int, total: int) -> None:
    pytest.fail("decoded again")


def opened(folder: Path, records, config=CONFIG, *, channels=1, progress=None) -> ClipCache:
    return ClipCache(folder / "cache", records, config, channels=channels, progress=progress)


def files(folder: Path) -> dict[str, bytes]:
    """Name → content of every file of the cache."""
    return {path.name: path.read_bytes() for path in (folder / "cache").rglob("*") if path.is_file()}


def test_it_holds_what_decoding_gives(records, tmp_path):
    seen = []
    cache = opened(tmp_path, records, progress=lambda *at: seen.append(at))
    assert seen == [(done, 12) for done in range(1, 13)]
    assert cache.records == tuple(records)
    again = opened(tmp_path, records, progress=no_decoding)
    for record in records:
        pair = read_pair(record, CONFIG, channels=1, side=32)
        for one in (cache[record], again[record]):
            assert torch.equal(one.frames_T3SS, pair.frames_T3SS)
            assert torch.equal(one.map_CTSS, pair.map_CTSS)
    assert len(files(tmp_path)) == 24  # frames and map of each


def test_two_channels_lie_in_order(records, tmp_path):
    config = replace(CONFIG, maps="both")
    cache = opened(tmp_path, records, config, channels=2)
    pair = read_pair(records[7], config, channels=2, side=32)
    assert pair.map_CTSS.shape[0] == 2
    assert torch.equal(cache[records[7]].map_CTSS, pair.map_CTSS)


def touched(file: Path) -> None:
    os.utime(file, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "decoded"),
    [
        (lambda records: (records, {"frames": 5}, 1), 12),
        (lambda records: (records, {"size": 24}, 1), 12),
        (lambda records: (records, {"maps": "doctor2"}, 1), 12),
        (lambda records: (records, {"maps": "both"}, 2), 12),
        (lambda records: (records[:-1], {}, 1), 0),
        (lambda records: (records[::-1], {}, 1), 0),
        (lambda records: ([replace(records[0], start_s=0.25), *records[1:]], {}, 1), 1),
        (lambda records: ([replace(records[0], end_s=0.5), *records[1:]], {}, 1), 1),
        (lambda records: ([replace(records[0], spans="video"), *records[1:]], {}, 1), 1),
        (lambda records: ([replace(records[0], map=records[1].map), *records[1:]], {}, 1), 1),
        (lambda records: ([*records, replace(records[0], clip_id="more", end_s=0.75)], {}, 1), 1),
        (lambda records: ([*records, replace(records[0], clip_id="copy")], {}, 1), 0),
        (lambda records: (touched(records[3].video), (records, {}, 1))[1], 1),
        (lambda records: (touched(records[3].map), (records, {}, 1))[1], 1),
    ],
)
def test_only_clips_whose_pixels_change_are_decoded(records, tmp_path, change, decoded):
    opened(tmp_path, records)
    records, knobs, channels = change(records)
    config = replace(CONFIG, **knobs)
    seen = []
    cache = opened(tmp_path, records, config, channels=channels, progress=lambda *at: seen.append(at))
    assert seen == [(done, decoded) for done in range(1, decoded + 1)]
    assert cache.added == decoded
    for record in records:
        pair = read_pair(record, config, channels=channels, side=config.size)
        assert torch.equal(cache[record].frames_T3SS, pair.frames_T3SS)
        assert torch.equal(cache[record].map_CTSS, pair.map_CTSS)


@pytest.mark.parametrize("knobs", [{"maps": "doctor2"}, {"maps": "both", "region_joints": "mean"}])
def test_other_maps_leave_the_frames_as_they_are(records, tmp_path, monkeypatch, knobs):
    opened(tmp_path, records)
    monkeypatch.setattr(cache_module, "read_pair", lambda *arguments, **keywords: pytest.fail("a video was decoded"))
    cache = opened(tmp_path, records, replace(CONFIG, **knobs))
    assert cache.added == 12
    assert len([name for name in files(tmp_path) if name.endswith(".frames")]) == 12
    assert len([name for name in files(tmp_path) if name.endswith(".map")]) == 24


def test_what_is_done_to_maps_afterwards_does_not(records, tmp_path):
    opened(tmp_path, records)
    knobs = {"control": "random", "map_noise": 0.3, "map_scale": 2.0, "batch_size": 4, "fold": 1, "root": "elsewhere"}
    relabelled = [replace(record, label=0, fold=3) for record in records]
    assert opened(tmp_path, relabelled, replace(CONFIG, **knobs), progress=no_decoding).added == 0


def test_regions_matter_to_drawn_maps_only(records, tmp_path):
    other = [replace(record, regions_doctor2=("head",)) for record in records]
    opened(tmp_path, records)
    assert opened(tmp_path, other).added == 0
    drawn = replace(CONFIG, maps="doctor2")
    assert [opened(tmp_path, some, drawn).added for some in (records, other)] == [12, 12]


def test_a_clip_without_a_map_has_zeros_and_no_file(records, tmp_path):
    cache = opened(tmp_path, [replace(records[0], map=None, keypoints=None)])
    assert not cache[records[0]].map_CTSS.any()
    assert [Path(name).suffix for name in files(tmp_path)] == [".frames"]


def test_a_folder_of_frames_is_known_by_its_files(tmp_path):
    from PIL import Image

    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(frames / f"{number}.png")
    records = [ClipRecord("a", "anna", frames)]
    opened(tmp_path, records)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(frames / "2.png")
    after = opened(tmp_path, records)
    assert after.added == 1
    assert after[records[0]].frames_T3SS[2, 0].min() == 255


def test_another_reader_of_pictures_decodes_anew(records, tmp_path, monkeypatch):
    opened(tmp_path, records)
    monkeypatch.setattr("clip_common.images.VERSION", 99)
    assert opened(tmp_path, records).added == 12


def test_a_pickled_cache_holds_no_pixels(records, tmp_path):
    cache = opened(tmp_path, records)
    content = pickle.dumps(cache)
    assert len(content) < sum(map(len, files(tmp_path).values())) / 4
    assert torch.equal(pickle.loads(content)[records[5]].frames_T3SS, cache[records[5]].frames_T3SS)


def test_what_it_gives_can_be_written_to(records, tmp_path):
    cache = opened(tmp_path, records)
    kept = cache[records[0]].frames_T3SS.clone()
    cache[records[0]].frames_T3SS.zero_()
    assert torch.equal(cache[records[0]].frames_T3SS, kept)


def test_two_writers_at_once_end_with_one_cache(records, tmp_path, monkeypatch):
    together = threading.Barrier(2, timeout=60)
    ready = cache_module.check_space

    def both_ready(*arguments, **keywords):
        together.wait()  # both miss every clip
        return ready(*arguments, **keywords)

    monkeypatch.setattr(cache_module, "check_space", both_ready)
    made: list[ClipCache] = []
    writers = [threading.Thread(target=lambda: made.append(opened(tmp_path, records))) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [cache.added for cache in made] == [12, 12]
    assert torch.equal(made[0][records[3]].frames_T3SS, made[1][records[3]].frames_T3SS)
    assert len(files(tmp_path)) == 24


def test_a_killed_run_leaves_whole_clips_and_the_next_one_continues(records, tmp_path):
    """SIGKILL while the cache is written: no file is half a clip, and what was written is not decoded again."""
    script = """
import os, signal, sys
from pathlib import Path
from videoclip.config import DataConfig
from videoclip.data import ClipCache, read_clips
config = DataConfig(root=sys.argv[1], frames=4, size=32)
kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 5 else None
ClipCache(Path(sys.argv[2]), read_clips(config), config, channels=1, progress=kill)
"""
    arguments = [str(tmp_path / "walking"), str(tmp_path / "cache")]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False, timeout=200)
    assert killed.returncode == -signal.SIGKILL
    kept = {name: content for name, content in files(tmp_path).items() if not name.startswith(".")}
    assert {len(content) for content in kept.values()} == {4 * 3 * 32 * 32, 4 * 32 * 32}
    cache = opened(tmp_path, records)
    assert cache.added <= 12 - 5
    for record in records:
        assert torch.equal(cache[record].frames_T3SS, read_pair(record, CONFIG, channels=1, side=32).frames_T3SS)


def test_a_file_that_a_power_failure_left_empty_is_written_anew(records, tmp_path):
    opened(tmp_path, records)
    next((tmp_path / "cache").rglob("*.frames")).write_bytes(b"")
    assert opened(tmp_path, records).added == 1


def test_files_that_no_run_has_opened_for_a_month_are_removed(records, tmp_path):
    """Those of other clips, of killed writers and of the former format; not those of a run of today."""
    opened(tmp_path, records)
    old = tmp_path / "cache" / "0123456789abcdef01234567"  # a cache of all clips in one file
    old.mkdir()
    (old / "pixels.bin").write_bytes(bytes(100))
    (tmp_path / "cache" / ".of-another-kind").write_bytes(b"")
    day = 24 * 3600
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 29 * day,) * 2)
    assert opened(tmp_path, records[:4]).removed == 0
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            os.utime(path, (path.stat().st_mtime - 2 * day,) * 2)
    cache = opened(tmp_path, records[:4])
    assert (cache.added, cache.removed) == (0, 17)  # frames and maps of eight clips, and the old format's file
    assert len(files(tmp_path)) == 8 + 1
    assert not old.exists()
    kept = 4 * (4 * 3 * 32 * 32 + 4 * 32 * 32) / 2**20
    expected = (
        f"decoded clips: {kept:.1f} MiB in {tmp_path / 'cache'}, 0 of 4 added; 17 file(s) unused for 30 days removed"
    )
    assert cache.describe() == expected


def test_a_disk_too_small_is_refused_before_anything_is_written(records, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(DataError, match=r"the clip cache needs about .*data\.cache_dir"):
        opened(tmp_path, records, progress=no_decoding)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_that_fills_up_is_left_as_it_was(records, tmp_path, monkeypatch):
    opened(tmp_path, records[:2])
    before = files(tmp_path)
    write, count = cache_module.write_file, iter(range(100))

    def full(path, content):
        if next(count) == 7:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(cache_module, "write_file", full)
    with pytest.raises(OSError, match=r"No space.*cache"):
        opened(tmp_path, records)
    assert files(tmp_path) == before


def test_a_broken_clip_stops_or_is_left_out(records, tmp_path):
    records[2].video.write_bytes(b"gone")
    records[5].map.unlink()
    with pytest.raises(DataError, match=records[2].video.name):
        opened(tmp_path, records)

    cache = opened(tmp_path, records, replace(CONFIG, on_error="skip"))
    assert list(cache.problems) == [records[2].clip_id, records[5].clip_id]
    assert "not a readable video" in cache.problems[records[2].clip_id]
    assert cache.records == tuple(record for record in records if record not in (records[2], records[5]))
    for record in cache.records:
        assert torch.equal(cache[record].frames_T3SS, read_pair(record, CONFIG, channels=1, side=32).frames_T3SS)
    assert find_problems(records, CONFIG, channels=1, side=32) == cache.problems
    with pytest.raises(DataError, match=r"2 clip\(s\) cannot be read, the first: .*data\.on_error=skip"):
        opened(tmp_path, records)


def test_a_set_of_which_nothing_can_be_read_is_an_error(records, tmp_path):
    for record in records:
        record.video.write_bytes(b"gone")
    with pytest.raises(DataError, match="none of 12 clips can be read, the first: "):
        opened(tmp_path, records, replace(CONFIG, on_error="skip"))


def test_a_repaired_clip_is_read_again(records, tmp_path):
    content = records[2].video.read_bytes()
    records[2].video.write_bytes(b"gone")
    skipping = replace(CONFIG, on_error="skip")
    assert len(opened(tmp_path, records, skipping).records) == 11
    records[2].video.write_bytes(content)
    cache = opened(tmp_path, records, skipping)
    assert len(cache.records) == 12
    assert np.array_equal(cache[records[2]].frames_T3SS, read_pair(records[2], CONFIG, channels=1, side=32).frames_T3SS)
