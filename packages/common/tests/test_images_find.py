"""Which pictures files, folders and globs name."""

import os
from pathlib import Path

import pytest

from clip_common.errors import DataError
from clip_common.images import find_images


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b.PNG", "a.jpg", "sub/c.webp", "sub/deep/雪, café.gif", ".hidden.png", ".thumbs/d.png", "notes.txt"]
    for name in names:
        file = Path("photos") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    Path(os.fsdecode(b"photos/latin \xe9.bmp")).touch()
    Path("photos/folder.png").mkdir()
    return Path("photos")


def test_a_folder_holds_its_visible_pictures_at_any_depth_by_path(photos):
    found = ["a.jpg", "b.PNG", os.fsdecode(b"latin \xe9.bmp"), "sub/c.webp", "sub/deep/雪, café.gif"]
    assert find_images([photos]) == [photos / name for name in found]
    assert find_images([str(photos)], exclude=photos / "sub") == [photos / name for name in found[:3]]


def test_a_glob_is_that_of_a_shell_and_a_named_file_counts_always(photos):
    names = [path.name for path in find_images([str(photos / "*")])]
    assert names == ["a.jpg", "b.PNG", os.fsdecode(b"latin \xe9.bmp"), "notes.txt"]
    assert [path.name for path in find_images(["photos/**/*.webp"])] == ["c.webp"]
    assert [path.name for path in find_images([str(photos.absolute() / "sub" / "*")])] == ["c.webp"]
    assert find_images([photos / ".hidden.png"]) == [photos / ".hidden.png"]
    (photos / "[1].png").touch()
    assert find_images(["photos/[1].png"]) == [photos / "[1].png"]


def test_sources_keep_their_order_and_no_picture_comes_twice(photos):
    found = find_images([photos / "sub", photos / "b.PNG", "photos/*.jpg", photos])
    assert [path.name for path in found[:4]] == ["c.webp", "雪, café.gif", "b.PNG", "a.jpg"]
    assert len(found) == 5


def test_nothing_there_is_named(photos):
    (photos / "empty").mkdir()
    for source in ("photos/empty", "photos/gone.png", "photos/*.tiff"):
        with pytest.raises(DataError) as error:
            find_images([photos, source])
        assert str(error.value).startswith(f"{source}: no picture there (png, jpg, jpeg, bmp, gif, tif, tiff, webp); ")
    with pytest.raises(DataError, match="cannot be read"):
        find_images([photos / ("long" * 100)])
