"""Loading a set: splits, held-out images, broken and missing images, empty captions, statistics."""

import os
import time

import pytest
import toy_captions as toy
import toy_shards
from helpers.real import real_data

from clipse.data import DataError, ImageRecord, check, hold_out, load_captions, stats
from clipse.data.splits import draw_splits

CAPTIONS = toy.CAPTIONS
folder = toy.folder
jpeg = toy.jpeg
message = toy_shards.message
write_karpathy = toy.write_karpathy
write_kaggle = toy.write_kaggle


def test_a_broken_image_does_not_move_the_others_to_another_split(folder):
    write_kaggle(folder)
    whole = {record.name: record.split for record in load_captions(folder).images}
    (folder / "Images" / "ein hund.jpg").write_bytes(b"broken")
    rest = {record.name: record.split for record in load_captions(folder, on_error="skip").images}
    assert rest == {name: split for name, split in whole.items() if name != "ein hund.jpg"}


def test_images_without_a_split_beside_others_with_one_are_left_out_and_counted(folder):
    write_karpathy(folder, ("train", "train", "test", ""))
    data = load_captions(folder)
    assert [record.split for record in data.images] == ["train", "train", "test"]
    assert data.unlisted == 1


def test_split_lists_decide_and_images_in_no_list_are_left_out_and_counted(folder):
    write_kaggle(folder)
    (folder / "Flickr_8k.trainImages.txt").write_text("ein hund.jpg\nzwölf.jpg\n", encoding="utf-8")
    (folder / "Flickr_8k.testImages.txt").write_text("c.jpg\n")
    data = load_captions(folder)
    assert [record.split for record in data.images] == ["train", "train", "test"]
    assert data.unlisted == 1


def test_without_splits_they_are_drawn_by_image_and_by_seed():
    names = draw_splits(8000, seed=0)
    assert [names.count(split) for split in ("train", "val", "test")] == [6000, 1000, 1000]
    assert draw_splits(8000, seed=0) == names
    assert draw_splits(8000, seed=1) != names
    assert sorted(draw_splits(3, seed=0)) == ["test", "train", "val"]


def test_held_out_images_leave_the_training_split(folder):
    write_karpathy(folder, ("train", "train", "train", "train"))
    records = load_captions(folder).split("train")
    train, val = hold_out(records, count=2, seed=5)
    assert {record.name for record in train} | {record.name for record in val} == set(CAPTIONS)
    assert len(train) == len(val) == 2
    assert {record.split for record in val} == {"val"}
    with pytest.raises(DataError, match="1 to 2"):
        hold_out(records, count=3)


def test_statistics_by_hand(folder):
    write_karpathy(folder)
    (folder / "Images" / "c.jpg").write_bytes(jpeg())
    figures = stats(folder)
    train = figures.rows[0]
    assert (train["split"], train["images"], train["captions"], train["captions_per_image"]) == ("train", 2, 4, 2.0)
    assert train["words_max"] == 7  # a dog, a cat and a bird
    assert (train["width_median"], train["height_median"]) == (24, 16)
    assert figures.repeated_captions == 0


def test_a_missing_folder(tmp_path):
    assert "nowhere" in message(tmp_path / "nowhere")


def test_a_folder_without_captions_lists_what_was_looked_for(tmp_path):
    text = message(tmp_path)
    assert "captions.txt" in text
    assert "*.tar" in text


def test_a_captions_file_without_captions(folder):
    (folder / "captions.txt").write_text("image,caption\n")
    assert "no captions" in message(folder)


def test_an_empty_caption_is_refused_or_skipped_and_counted(folder):
    write_kaggle(folder)
    with (folder / "captions.txt").open("a") as stream:
        stream.write("c.jpg,  \n")
    assert "1 empty caption" in message(folder)
    data = load_captions(folder, on_error="skip")
    assert data.skipped_captions == 1
    assert data.skipped == 0
    assert [record.captions for record in data.images] == list(CAPTIONS.values())


def test_an_image_that_only_has_empty_captions_is_skipped_with_them(folder):
    lines = ["image,caption", "c.jpg,", "c.jpg,  ", "d.jpg,one", "zwölf.jpg,two"]
    (folder / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
    assert "2 empty caption" in message(folder)
    data = load_captions(folder, on_error="skip")
    assert (data.skipped, data.skipped_captions) == (1, 2)
    assert [record.name for record in data.images] == ["d.jpg", "zwölf.jpg"]


def test_captions_of_absent_images_name_the_first_and_the_count(folder):
    write_kaggle(folder)
    for name in list(CAPTIONS)[:2]:
        (folder / "Images" / name).unlink()
    text = message(folder)
    assert "2 captioned" in text
    assert "ein hund.jpg" in text
    assert load_captions(folder, on_error="skip").skipped == 2


@pytest.mark.parametrize(
    "content", [jpeg()[:300], b"", b"<html>not an image</html>"], ids=["truncated", "empty", "html"]
)
def test_a_broken_image_is_found_by_check_and_skipped_when_asked(folder, content):
    write_kaggle(folder)
    (folder / "Images" / "c.jpg").write_bytes(content)
    report = check(folder)
    assert not report.ok
    assert "c.jpg" in str(report.problems[0])
    assert load_captions(folder, on_error="skip").skipped == 1


def test_an_image_is_decoded_again_only_after_it_changed(folder, tmp_path, monkeypatch):
    write_kaggle(folder)
    cache, broken = tmp_path / "cache", folder / "Images" / "c.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    an_hour_ago = time.time() - 3600
    for image in (folder / "Images").iterdir():
        os.utime(image, (an_hour_ago, an_hour_ago))
    first = load_captions(folder, on_error="skip", cache=cache)
    decoded = []
    load = ImageRecord.load_image
    monkeypatch.setattr(ImageRecord, "load_image", lambda self: decoded.append(self.name) or load(self))
    assert load_captions(folder, on_error="skip", cache=cache) == first
    assert decoded == []
    broken.write_bytes(whole)
    assert load_captions(folder, on_error="skip", cache=cache).skipped == 0
    assert decoded == ["c.jpg"]


def test_a_set_of_one_image(folder):
    (folder / "captions.txt").write_text("image,caption\nc.jpg,plain\n")
    assert "1 usable image" in message(folder)


@pytest.mark.real
def test_the_real_captions_load():
    captions = real_data("captions")
    data = load_captions(captions)
    assert data.format == "karpathy"
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [600, 0, 201]
    assert check(captions).ok
