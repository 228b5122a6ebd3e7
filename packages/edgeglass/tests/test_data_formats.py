"""Every format written and read back; what is refused, in one line."""

import json
import os
import sys

import pytest
import toy_captions
import toy_samples as toy
from toy_samples import CAPTIONS, IMAGES, SOUNDS, SPLITS, WRITERS, content_of, read, refusal

from edgeglass.config import DataConfig
from edgeglass.data import read_samples
from edgeglass.data.formats import FORMATS, detect
from edgeglass.data.rows import name_split


@pytest.mark.parametrize("way", WRITERS)
def test_a_format_is_told_from_its_files_and_read_back(tmp_path, way):
    WRITERS[way](tmp_path)
    samples = read(tmp_path)
    assert samples.format == way.split()[0]
    found = {sample.captions: sample for split in samples.splits.values() for sample in split}
    assert found.keys() == set(CAPTIONS.values())
    for name, captions in CAPTIONS.items():
        sample = found[captions]
        assert sample.split == SPLITS[name]
        assert content_of(sample.image) == IMAGES[name]
        assert content_of(sample.audio) == SOUNDS[name]
        assert sample.modalities == ("image", "text", "audio")
    assert sorted(sample.id for sample in found.values()) == [0, 1, 2, 3]
    assert read(tmp_path, format=samples.format) == samples
    assert (samples.problems, samples.skipped, samples.unlisted) == ([], 0, 0)


@pytest.mark.parametrize("format", toy_captions.WRITERS)
def test_caption_files_of_images(tmp_path, format):
    (tmp_path / "Images").mkdir()
    for name in toy_captions.CAPTIONS:
        (tmp_path / "Images" / name).write_bytes(toy_captions.jpeg())
    toy_captions.WRITERS[format](tmp_path)
    samples = read(tmp_path)
    assert samples.format == format
    listed = [sample for split in samples.splits.values() for sample in split]
    assert {sample.captions for sample in listed} == set(toy_captions.CAPTIONS.values())
    assert all(sample.modalities == ("image", "text") for sample in listed)


def test_the_world_with_sounds_is_read_back(tmp_path):
    from clip_common.synthetic import write_sounds

    write_sounds(tmp_path / "world", train=4, val=2, test=2, size=32)
    samples = read(tmp_path / "world")
    assert samples.format == "jsonl"
    assert {split: len(members) for split, members in samples.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert all(len(sample.captions) == 5 and sample.audio.is_file() for sample in samples.splits["train"])


def test_the_list_of_scenes_beside_captions_is_not_taken_for_the_set(tmp_path):
    from clip_common.synthetic import write_flickr8k

    write_flickr8k(tmp_path / "world", train=3, val=1, test=1, size=32)
    assert detect(tmp_path / "world") == "kaggle"


def test_files_named_after_splits_are_read_together(tmp_path):
    toy.write_media(tmp_path)
    for file, row in zip(("train.jsonl", "validation.jsonl", "test.jsonl"), toy.rows(), strict=False):
        toy.write_rows(tmp_path, [{key: value for key, value in row.items() if key != "split"}], file)
    assert [len(split) for split in read(tmp_path).splits.values()] == [1, 1, 1]
    assert read(tmp_path / "test.jsonl").splits["test"][0].id == 0


def test_files_of_one_format_are_not_chosen_between(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        toy.write_rows(tmp_path, toy.rows(), name)
    assert "several JSONL files (a.jsonl, b.jsonl): name one" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["captions", "caption", "text"])
@pytest.mark.parametrize("value", ["a dog", ["a dog"]], ids=["text", "list"])
def test_the_keys_of_captions(tmp_path, key, value):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [{"image": "images/c.png", key: value, "split": "test", "source": "web"}])
    assert read(tmp_path).splits["test"][0].captions == ("a dog",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"imagee": "c.png"}, "unknown key 'imagee': did you mean image?"),
        ({"image": None, "split": "test"}, "neither an image nor a caption nor a sound"),
        ({}, "neither an image nor a caption nor a sound"),
        ({"image": 5}, "expected the path of an image, got 5"),
        ({"audio": ""}, "expected the path of a sound, got ''"),
        (
            {"image": "https://example.org/a.png"},
            "given by a URL, https://example.org/a.png, and nothing is downloaded",
        ),
        ({"image": "c.png", "caption": 7}, "expected captions as texts, got 7"),
        ({"image": "c.png", "captions": [["a"]]}, "expected captions as texts, got ['a']"),
        ({"image": "c.png", "caption": "half \ud83d"}, r"the caption 'half \ud83d' is not valid Unicode"),
        ({"image": "c.png", "split": "tset"}, "unknown split 'tset'"),
        ({"image": "c.png", "split": 1}, "expected a split as text, got 1"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, row, said):
    toy.write_media(tmp_path)
    with toy.write_rows(tmp_path, toy.rows()).open("a") as stream:
        stream.write(json.dumps(row))
    text = refusal(tmp_path)
    assert "data.jsonl, line 5" in text
    assert said in text


def test_a_jsonl_file_that_is_not_json(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"image": "c.png"\n')
    assert "data.jsonl, line 1: not JSON" in refusal(tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    from clip_common.tables import json_lines_text

    name = os.fsdecode(b"caf\xe9")
    toy.write_media(tmp_path)
    (tmp_path / "images" / f"{name}.png").write_bytes(toy.png())
    (tmp_path / "data.jsonl").write_text(
        json_lines_text([{"image": f"images/{name}.png", "caption": "a cup", "split": "test"}]), encoding="utf-8"
    )
    (sample,) = read(tmp_path).splits["test"]
    assert sample.image.is_file()
    assert sample.name == "images/caf\N{REPLACEMENT CHARACTER}.png"
    (tmp_path / "images" / f"{name}.png").unlink()
    assert "caf\N{REPLACEMENT CHARACTER}.png: no such file" in refusal(tmp_path)


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    toy.write_media(folder)
    lines = [{"caption": "a text alone"}, *({"image": row["image"], "text": "one"} for row in toy.rows())]
    toy.write_rows(folder, lines)
    samples = read(folder)
    names = [sample.name for split in samples.splits.values() for sample in split]
    assert any(name.endswith("caf\N{REPLACEMENT CHARACTER}/data.jsonl, line 1") for name in names)
    toy.write_rows(folder, [*lines, {"image": 5}])
    assert "caf\N{REPLACEMENT CHARACTER}/data.jsonl, line 6" in refusal(folder)


def test_folders_of_splits_may_be_below_those_of_the_modalities(tmp_path):
    toy.write_media(tmp_path, images="images/train", sounds="audio/train")
    (tmp_path / "images" / "train" / "deep").mkdir()
    (tmp_path / "images" / "train" / "deep" / "c.png").write_bytes(toy.png())
    (tmp_path / "images" / "train" / ".hidden.png").write_bytes(toy.png())
    (tmp_path / "images" / "train" / "notes.md").write_text("no sample")
    samples = read(tmp_path)
    assert samples.format == "folders"
    assert [(sample.name, sample.modalities) for sample in samples.splits["train"]] == [
        ("c", ("image", "audio")),
        ("d", ("image", "audio")),
        ("deep/c", ("image",)),
        ("ein hund", ("image", "audio")),
        ("zwölf", ("image", "audio")),
    ]


def test_two_images_of_one_stem(tmp_path):
    toy.write_folders(tmp_path)
    (tmp_path / "train" / "images" / "zwölf.jpg").write_bytes(toy.png())
    assert "two files of one modality with the same stem" in refusal(tmp_path)


def test_a_text_file_that_is_blank_or_not_text(tmp_path):
    toy.write_folders(tmp_path)
    file = tmp_path / "test" / "texts" / "d.txt"
    file.write_text(" \n")
    assert "1 empty caption(s): d: an empty caption" in refusal(tmp_path)
    file.write_bytes(b"caf\xe9")
    assert "d.txt: not UTF-8" in refusal(tmp_path)


def test_folders_whose_stems_do_not_match(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(toy.png())
    (tmp_path / "texts" / "b.txt").write_text("a dog")
    assert "no sample has two of image, text and audio" in refusal(tmp_path)


def test_an_empty_folder_lists_what_was_looked_for(tmp_path):
    text = refusal(tmp_path)
    assert "data.jsonl" in text
    assert "*.parquet" in text
    assert "captions.txt" in text


def test_empty_paired_folders_and_an_empty_list(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "sounds").mkdir()
    assert "holds no samples" in refusal(tmp_path)
    (tmp_path / "data.jsonl").write_text("\n")
    assert "holds no samples" in refusal(tmp_path)


def test_a_missing_root_an_unset_one_and_an_unknown_format(tmp_path):
    assert "nowhere: no such file or folder" in refusal(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data\.root is not set"):
        read_samples(DataConfig())
    assert f"expected auto or one of {', '.join(FORMATS)}" in refusal(tmp_path, format="flickr")
    assert "no kaggle captions found" in refusal(tmp_path, format="kaggle")
    (tmp_path / "notes.txt").write_text("no set")
    assert "no set of a known format" in refusal(tmp_path / "notes.txt")


@pytest.mark.parametrize(("way", "module"), [("parquet", "pyarrow"), ("datasets", "datasets")])
def test_a_library_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch, way, module):
    WRITERS[way](tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'edgeglass\[{way}\]'$"):
        read(tmp_path)


def test_splits_in_names():
    names = ["train-00000-of-00002.parquet", "validation.jsonl", "dev", "train2017", "testimonials.jsonl", "my-test"]
    assert [name_split([name]) for name in names] == ["train", "val", "val", "train", None, None]
    assert name_split(["data", "test_1.parquet"]) == "test"
