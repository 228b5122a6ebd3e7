"""Sets of every format through `load_captions`: caption files and webdataset shards; what is refused, in one line."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import toy_captions as toy
import toy_shards
from PIL import Image

from clipse.data import check, load_captions

CAPTIONS = toy.CAPTIONS
WRITERS = toy_shards.WRITERS
add = toy_shards.add
folder = toy.folder
jpeg = toy.jpeg
message = toy_shards.message
write_open_clip = toy.write_open_clip
write_shards = toy_shards.write_shards


@pytest.mark.parametrize("format", WRITERS)
def test_a_format_is_told_from_its_files_and_read_back(folder, format):
    WRITERS[format](folder)
    data = load_captions(folder)
    assert data.format == format
    assert {record.captions for record in data.images} == set(CAPTIONS.values())
    for record in data.images:
        assert Image.open(io.BytesIO(record.read())).size == (24, 16)
    assert load_captions(folder, format=format).images == data.images
    assert check(folder).ok


def test_shards_take_their_split_from_their_name(folder):
    write_shards(folder)
    splits = {record.name: record.split for record in load_captions(folder).images}
    assert splits == {
        "train-0.tar/ein hund.jpg": "train",
        "train-0.tar/zwölf.jpg": "train",
        "val-0.tar/c.jpg": "val",
        "test-0.tar/d.jpg": "test",
    }


def test_shards_in_folders_of_their_splits_are_found(folder):
    write_shards(folder)
    for split in ("train", "val", "test"):
        (folder / split).mkdir()
        (folder / f"{split}-0.tar").rename(folder / split / "00000.tar")
    data = load_captions(folder)
    assert data.format == "webdataset"
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [2, 1, 1]


def test_the_procedural_worlds_folder_is_read_back_as_it_was_drawn(scenes):
    from clip_common.synthetic import captions, sample_scene

    data = load_captions(scenes)
    assert data.format == "kaggle"
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [48, 16, 16]
    assert [list(record.captions) for record in data.images] == [captions(sample_scene(1, i)) for i in range(80)]


def write_captions_as_json(folder: Path, format: str, captions: list[object]) -> None:
    """Two images; `captions` are those of c.jpg, as JSON."""
    if format == "karpathy":
        named = {"c.jpg": captions, "d.jpg": ["one more"]}
        images = [{"filename": name, "sentences": [{"raw": one} for one in of]} for name, of in named.items()]
        (folder / "dataset.json").write_text(json.dumps({"images": images}))
        return
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for name, one in (("c", captions), ("d", ["one more"])):
            add(archive, f"{name}.jpg", jpeg())
            content = {"captions": one} if len(one) > 1 else {"caption": one[0]}
            add(archive, f"{name}.json", json.dumps(content).encode())


@pytest.mark.parametrize("format", ["karpathy", "webdataset"])
def test_a_caption_that_is_null_is_an_empty_one(folder, format):
    write_captions_as_json(folder, format, ["plain", None])
    assert "1 empty caption(s)" in message(folder)
    data = load_captions(folder, on_error="skip")
    assert data.images[0].captions == ("plain",)
    assert data.skipped_captions == 1


@pytest.mark.parametrize("format", ["karpathy", "webdataset"])
def test_an_image_whose_only_caption_is_null_has_none(folder, format):
    write_captions_as_json(folder, format, [None])
    assert "1 empty caption(s)" in message(folder)


@pytest.mark.parametrize("captions", [["plain", 5], [{"en": "plain"}], ["plain", ["nested"]], [False]], ids=str)
@pytest.mark.parametrize("format", ["karpathy", "webdataset"])
def test_a_caption_that_is_no_text_names_its_sample(folder, format, captions):
    write_captions_as_json(folder, format, captions)
    said = message(folder)
    assert "c.j" in said
    assert "expected a caption as text" in said


def test_two_files_of_one_format_are_not_chosen_between(folder):
    write_open_clip(folder)
    (folder / "more.csv").write_text("filepath,title\nImages/c.jpg,x\nImages/d.jpg,y\n")
    assert "more.csv, pairs.csv" in message(folder)
    assert len(load_captions(folder / "more.csv").images) == 2


def test_an_unknown_format_names_the_known(folder):
    assert "kaggle" in message(folder, format="flickr")


def test_a_folder_of_caption_file_and_shards_is_read_from_the_file(folder):
    toy.write_kaggle(folder)
    write_shards(folder)
    assert load_captions(folder).format == "kaggle"
    assert load_captions(folder, format="webdataset").format == "webdataset"


def test_a_shard_that_is_no_tar(folder):
    (folder / "train-0.tar").write_text("this is no tar")
    assert "broken shard" in message(folder)
