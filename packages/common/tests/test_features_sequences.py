"""Rows of different length: the tokens of each sound, computed once, with what holds for rows of one shape."""

import logging
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import toy_features as toy
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clip_common.backbones import BackboneError
from clip_common.features import FeatureCache, FeatureCacheError, cache


@pytest.fixture
def audio():
    return toy.toy_audio()


def write_sounds(folder, lengths):
    """Files of so many frames each; no two are equal."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:02d} é.raw" for number in range(len(lengths))]
    for number, (file, length) in enumerate(zip(files, lengths, strict=True)):
        file.write_bytes(bytes([number]) + bytes(range(4 * length - 1)))
    return files


@pytest.fixture
def sounds(tmp_path):
    """40 files of 1 to 7 frames."""
    return write_sounds(tmp_path / "звуки", [1 + 3 * number % 7 for number in range(40)])


@pytest.fixture
def store(tmp_path):
    return FeatureCache(tmp_path / "cache ö")


def direct(audio, sounds):
    """The tokens without a cache, one sound at a time."""
    items = [audio.feed.load(file.read_bytes(), name="") for file in sounds]
    with torch.no_grad():
        return [audio.tower.trunk.samples(item) for item in items]


def assert_equal(rows, expected):
    assert [row.shape for row in rows] == [row.shape for row in expected]
    for row, other in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, other)


def shards(store):
    return sorted(store.root.rglob("*.safetensors"))


def test_sequences_are_those_of_the_trunk_in_the_order_asked_for(audio, sounds, store):
    wanted = [sounds[5], sounds[0], sounds[5], *sounds[20:]]
    rows = store.sequences(audio, wanted, batch_size=8)
    assert_equal(rows, direct(audio, wanted))
    assert rows[0].dtype == torch.float32
    assert audio.tower.trunk.runs == [8, 8, 6]
    again = store.sequences(toy.toy_audio(), wanted[::-1])
    assert all(torch.equal(one, other) for one, other in zip(again, rows[::-1], strict=True))
    assert_equal(store.sequences(audio, sounds), direct(audio, sounds))
    assert audio.tower.trunk.runs == [8, 8, 6, 16, 2]  # only those that were missing


def test_sequences_and_features_of_an_encoder_are_kept_apart(audio, sounds, store):
    rows, features = store.sequences(audio, sounds), store.features(audio, sounds)
    torch.testing.assert_close(torch.stack([row.mean(dim=0) for row in rows]), features)
    assert len(list(store.root.iterdir())) == 2
    audio.tower.trunk.runs.clear()
    store.sequences(audio, sounds)
    store.features(audio, sounds)
    assert audio.tower.trunk.runs == []


def test_a_shard_holds_rows_joined_and_where_each_ends(audio, sounds, store):
    store.sequences(audio, sounds[:3])
    content = load_file(shards(store)[0])
    assert content["ends"].tolist() == [1, 5, 12]  # 1, 4 and 7 frames
    assert content["features"].shape == (12, 5)
    assert content["keys"].shape == (3, 32)


def test_unreadable_sounds_are_named_or_skipped(audio, sounds, store, tmp_path):
    odd, absent = tmp_path / "odd.raw", tmp_path / "absent.raw"
    odd.write_bytes(b"12345")
    with pytest.raises(FeatureCacheError, match=r"odd\.raw cannot be read: .*5 bytes are no frames"):
        store.sequences(audio, [*sounds[:4], odd], batch_size=2)
    audio.tower.trunk.runs.clear()
    rows = store.sequences(audio, [absent, sounds[0], odd, sounds[1]], on_error="skip")
    assert_equal(rows, direct(audio, sounds[:2]))
    assert store.skipped == [absent, odd]
    assert audio.tower.trunk.runs == []
    assert store.sequences(audio, []) == []
    assert store.sequences(audio, [absent], on_error="skip") == []


def test_a_trunk_that_trains_is_computed_afresh_with_a_warning(audio, sounds, store):
    audio.tower.trunk.requires_grad_(True)
    with pytest.warns(UserWarning, match="the trunk trains: its audio sequences") as caught:
        rows = store.sequences(audio, [sounds[0], sounds[1], sounds[0]])
    assert caught[0].filename == __file__
    assert_equal(rows, direct(audio, [sounds[0], sounds[1], sounds[0]]))
    assert not store.root.exists()


def test_a_trunk_without_sequences_is_one_line(sounds, store):
    with pytest.raises(BackboneError, match="ToyText"):
        store.sequences(toy.toy_bundle().text, ["a dog"])
    with pytest.raises(ValueError, match="an encoder of kind audio takes files"):
        store.sequences(toy.toy_audio(), ["a dog"])


def test_the_size_is_estimated_from_the_first_batch(audio, sounds, store, caplog, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 2000))
        with pytest.raises(FeatureCacheError, match=r"40 audio sequences need .* KiB, but .* has 1\.953 KiB free"):
            store.sequences(audio, sounds, batch_size=4)
    assert not store.root.exists()
    assert audio.tower.trunk.runs == [4]
    with caplog.at_level(logging.INFO, logger="clip_common.features"):
        store.sequences(audio, sounds, batch_size=40)
    frames = sum(len(row) for row in direct(audio, sounds))
    assert f"40 audio sequences take {40 * (32 + 20 * frames // 40) / 1024:.4g} KiB" in caplog.text


def process(store, folder, *options):
    command = [sys.executable, str(toy.__file__), str(store.root), str(folder), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_killed_and_run_again_gives_the_same_bits_as_not_killed(audio, sounds, store, tmp_path):
    killed = process(store, sounds[0].parent, "--kill-at", "28")
    _, error = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, error
    assert len(shards(store)) == 3  # 24 of 28 sounds: a shard of 8 was under way
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed = store.sequences(audio, sounds, batch_size=4)
        assert audio.tower.trunk.runs == [4, 4, 4, 4]
        uninterrupted = FeatureCache(tmp_path / "other").sequences(audio, sounds, batch_size=4)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(resumed, uninterrupted, strict=True))


def test_two_processes_may_write_at_once(audio, sounds, store):
    writers = [process(store, sounds[0].parent) for _ in range(2)]
    for writer in writers:
        _, error = writer.communicate()
        assert writer.returncode == 0, error
    assert_equal(store.sequences(audio, sounds), direct(audio, sounds))
    assert audio.tower.trunk.runs == []


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    rows=st.integers(1, 6),
    data=st.data(),
)
def test_any_lengths_batches_and_shards_give_each_sound_its_own_rows(lengths, batch_size, rows, data):
    audio, before = toy.toy_audio(), cache.SHARD_ROWS
    wanted = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        sounds = write_sounds(Path(folder) / "sounds", lengths)
        store = FeatureCache(Path(folder) / "cache")
        cache.SHARD_ROWS = rows
        try:
            first = store.sequences(audio, sounds[: len(sounds) // 2], batch_size=batch_size)
            found = store.sequences(audio, [sounds[number] for number in wanted], batch_size=batch_size)
        finally:
            cache.SHARD_ROWS = before
        assert_equal(first, direct(audio, sounds[: len(sounds) // 2]))
        assert_equal(found, direct(audio, [sounds[number] for number in wanted]))
        for shard in store.root.rglob("*.safetensors"):
            content = load_file(shard)
            assert content["ends"][-1] == len(content["features"])
