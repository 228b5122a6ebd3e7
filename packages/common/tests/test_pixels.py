"""Folders of pixels: whole or not at all, named by what they were made from."""

import errno
import os
import pickle
import shutil
from collections import namedtuple

import numpy as np
import pytest

from clip_common.errors import DataError
from clip_common.pixels import MappedPixels, cache_folder, key_of, state_of


def test_a_key_changes_with_any_part():
    assert key_of(["a", 1]) == key_of(["a", 1])
    assert len({key_of(["a", 1]), key_of(["a", 2]), key_of([1, "a"]), key_of(["a"]), key_of(["a1"])}) == 5


def test_a_state_changes_with_content_and_time_of_a_file_and_of_those_in_a_folder(tmp_path):
    file = tmp_path / "folder" / "a – ü.png"
    file.parent.mkdir()
    file.write_bytes(b"one")
    states = [(state_of(file), state_of(file.parent))]
    file.write_bytes(b"three")
    states.append((state_of(file), state_of(file.parent)))
    os.utime(file, ns=(1, 1))
    states.append((state_of(file), state_of(file.parent)))
    assert len({state for pair in states for state in pair}) == 6
    with pytest.raises(FileNotFoundError):
        state_of(tmp_path / "absent")


def test_a_folder_appears_when_the_block_ends_and_not_before(tmp_path):
    folder = tmp_path / "below" / "cache"
    with cache_folder(folder, needed=1, what="the cache") as draft:
        (draft / "a").write_text("a")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["a"]
    assert list(folder.parent.iterdir()) == [folder]


def test_an_error_leaves_nothing(tmp_path):
    def fill() -> None:
        with cache_folder(tmp_path / "below" / "cache", needed=1, what="the cache") as draft:
            (draft / "a").write_text("a")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space.*below") as error:
        fill()
    assert error.value.filename == str(tmp_path / "below")
    assert list((tmp_path / "below").iterdir()) == []


def test_the_first_of_two_makers_stays(tmp_path):
    folder = tmp_path / "cache"
    with cache_folder(folder, needed=1, what="the cache") as late:
        (late / "a").write_text("late")
        with cache_folder(folder, needed=1, what="the cache") as early:
            (early / "a").write_text("early")
    assert (folder / "a").read_text() == "early"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_too_small_is_refused(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 2**20))
    with (
        pytest.raises(DataError, match=r"the cache needs about 3 MiB and the disk has 1 MiB free"),
        cache_folder(tmp_path / "cache", needed=3 * 2**20, what="the cache"),
    ):
        pytest.fail("there is no room")


def test_mapped_pixels_are_copied_when_read_and_mapped_again_when_pickled(tmp_path):
    (tmp_path / "pixels.bin").write_bytes(bytes(range(200)) * 100)
    pixels = MappedPixels(tmp_path / "pixels.bin")
    pixels[5:9][:] = 0
    assert pixels[5:9].tolist() == [5, 6, 7, 8]
    content = pickle.dumps(pixels)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content)[:], pixels[:])
