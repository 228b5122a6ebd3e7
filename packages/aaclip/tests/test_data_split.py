"""A few-shot list and the rest, in the official format: read back as they were drawn, the same everywhere."""

import hashlib
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from aaclip.config import DataConfig
from aaclip.data import DataError, Record, few_shot, read_dataset, training_records
from aaclip.data.split import split_few_shot, write_split


def known(record: Record) -> tuple:
    """What a list says of a record, wherever it lies."""
    mask = record.mask and record.mask.resolve()
    return record.image.resolve(), record.class_name, record.anomalous, mask


def written(root: Path, out: Path, *, shot: int = 4, seed: int = 0) -> tuple[list[Record], list[Record]]:
    train, test = split_few_shot(read_dataset(root), shot=shot, seed=seed)
    assert write_split(train, test, out) == [out / "train.jsonl", out / "test.jsonl"]
    return train, test


@pytest.mark.parametrize("out", ["lists", "a/b/Listen, groß"])
def test_both_lists_are_read_back_as_they_were_drawn(parts, tmp_path, out):
    train, test = written(parts, tmp_path / out)
    back = read_dataset(tmp_path / out)
    assert (back.format, back.problems) == ("jsonl", [])
    for split, records in (("train", train), ("test", test)):
        assert sorted(map(known, back.of(split=split))) == sorted(map(known, records))
    every = read_dataset(parts).records
    assert sorted(map(known, back.records)) == sorted(map(known, every))
    assert Counter((record.class_name, record.anomalous) for record in train) == {
        ("mug", False): 2,
        ("mug", True): 2,
        ("star", False): 2,
        ("star", True): 2,
    }
    assert train == few_shot(every, shot=4, seed=0)


def test_lines_are_what_the_released_code_reads_and_the_hash_of_the_image(parts, tmp_path):
    train, _ = written(parts, tmp_path / "lists")
    rows = [json.loads(line) for line in (tmp_path / "lists" / "train.jsonl").read_text().splitlines()]
    assert len(rows) == len(train)
    for row, record in zip(rows, train, strict=True):
        assert list(row) == ["image_path", "label", "class_name", "mask_path", "sha256"]
        assert (row["label"], row["class_name"]) == (int(record.anomalous), record.class_name)
        image = tmp_path / "lists" / row["image_path"]
        assert row["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
        assert not Path(row["image_path"]).is_absolute()
        assert bool(row["mask_path"]) == record.anomalous


def test_the_same_lists_from_anywhere_and_others_from_another_seed(parts, tmp_path):
    written(parts, tmp_path / "one")
    moved = Path(shutil.copytree(parts, tmp_path / "moved" / "set"))
    written(moved, tmp_path / "two")
    written(parts, tmp_path / "three", seed=1)

    def drawn(out: str) -> list[str]:
        return [json.loads(line)["sha256"] for line in (tmp_path / out / "train.jsonl").read_text().splitlines()]

    assert drawn("one") == drawn("two") != drawn("three")
    written(moved, moved.parent / "lists")  # beside the set: both may move together
    moved.parent.rename(tmp_path / "elsewhere")
    assert all(record.image.is_file() for record in read_dataset(tmp_path / "elsewhere" / "lists").records)


def test_training_on_the_lists_takes_the_training_list_alone(parts, tmp_path):
    train, _ = written(parts, tmp_path / "lists")
    records = training_records(read_dataset(tmp_path / "lists"), DataConfig(mode="few_shot", shot=4), seed=7)
    assert sorted(map(known, records)) == sorted(map(known, train))


def test_folders_behind_links_and_names_that_are_no_text(parts, tmp_path):
    real = Path(shutil.copytree(parts, tmp_path / "deep" / "er" / "set"))
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "deep" / "lists").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "deep" / "lists")
    try:
        next((real / "mug" / "test" / "good").iterdir()).rename(
            real / "mug" / "test" / "good" / os.fsdecode(b"\xff.png")
        )
    except OSError:
        pytest.skip("this file system takes text only")
    train, test = written(tmp_path / "link", tmp_path / "out" / "new")
    back = read_dataset(tmp_path / "out" / "new").records
    assert sorted(map(known, back)) == sorted(map(known, [*train, *test]))
    assert all(record.image.is_file() for record in back)


def test_what_cannot_be_split_is_one_line_and_leaves_nothing(parts, tmp_path):
    def refused(root: Path, match: str, **more: int) -> None:
        with pytest.raises(DataError, match=match) as error:
            written(root, tmp_path / "out", **more)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    refused(parts, r"class mug: 4 normal image\(s\), data.shot=10 needs 5: lower the shot", shot=10)
    refused(parts, r"data.shot=3: expected an even number from 2", shot=3)
    few = Path(shutil.copytree(parts, tmp_path / "few" / "set"))
    shutil.rmtree(few / "star")
    for folder in ("crack", "hole", "scratch"):
        shutil.rmtree(few / "mug" / "test" / folder, ignore_errors=True)
    normal, anomalous = (sum(one.anomalous == kind for one in read_dataset(few).records) for kind in (False, True))
    for extra in sorted((few / "mug").glob("t*/good/*"))[anomalous:]:
        extra.unlink()
    assert anomalous < normal
    refused(few, rf"shot {2 * anomalous} takes all {2 * anomalous} images and leaves none", shot=2 * anomalous)

    broken = Path(shutil.copytree(parts, tmp_path / "broken"))
    for mask in broken.glob("*/ground_truth/*/*"):
        mask.unlink()
    refused(broken, r"4 anomalous image\(s\) without a mask: ")
    twice = Path(shutil.copytree(parts, tmp_path / "twice"))
    drawn = next(one for one in split_few_shot(read_dataset(twice), shot=4, seed=0)[0] if not one.anomalous)
    other = next(one for one in split_few_shot(read_dataset(twice), shot=4, seed=0)[1] if not one.anomalous)
    shutil.copy(drawn.image, other.image)
    refused(twice, r"1 training image\(s\) are in a test set too, first .*: take them out of one of the two")


def test_an_image_that_goes_away_while_lists_are_written_leaves_neither(parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "set"))
    train, test = split_few_shot(read_dataset(root), shot=4, seed=0)
    test[-1].image.unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        write_split(train, test, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_a_folder_that_exists_is_left_alone(parts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.jsonl").write_text("mine")
    train, test = split_few_shot(read_dataset(parts), shot=4, seed=0)
    with pytest.raises(ValueError, match=r"out exists: name a folder that does not"):
        write_split(train, test, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.jsonl"]


def test_a_set_without_masks_keeps_its_anomalies_in_the_test_list(tmp_path):
    """A mask is asked for what is trained on alone."""
    for kind in ("normal", "abnormal"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (number, 0, len(kind))).save(tmp_path / "set" / kind / f"{number}.png")
    with pytest.raises(DataError, match=r"anomalous image\(s\) without a mask"):
        written(tmp_path / "set", tmp_path / "out", shot=2)
