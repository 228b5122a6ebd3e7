"""Who is trained on: deterministic draws, lists that notice a change, and no image that will be tested."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aaclip.config import DataConfig
from aaclip.data import (
    DataError,
    Dataset,
    Record,
    check_masks,
    check_no_overlap,
    few_shot,
    load_list,
    save_list,
    training_records,
)
from aaclip.data.selection import TRAINING_LIST, check_not_trained_on, check_same_images, read_hashes


def records_of(root: Path = Path("set"), *, normal: int = 20, anomalous: int = 12) -> list[Record]:
    made = []
    for name in ("bottle", "Nuss, groß"):
        folder = root / name
        made += [Record(folder / "train/good" / f"{n}.png", name, "train", False) for n in range(normal)]
        made += [Record(folder / "test/good" / f"{n}.png", name, "test", False) for n in range(3)]
        made += [
            Record(folder / "test/bent" / f"{n}.png", name, "test", True, mask=folder / f"{n}_mask.png", defect="bent")
            for n in range(anomalous)
        ]
    return made


def test_few_shot_takes_half_normal_half_anomalous_of_each_class():
    chosen = few_shot(records_of(), shot=8, seed=0)
    assert Counter((record.class_name, record.anomalous) for record in chosen) == {
        ("bottle", False): 4,
        ("bottle", True): 4,
        ("Nuss, groß", False): 4,
        ("Nuss, groß", True): 4,
    }
    assert len(set(chosen)) == 16


@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 99))
def test_few_shot_does_not_depend_on_order_or_place(order, seed):
    records = records_of()
    expected = few_shot(records, shot=8, seed=seed)
    order.shuffle(records)
    assert few_shot(records, shot=8, seed=seed) == expected
    elsewhere = few_shot(records_of(Path("/mnt/other")), shot=8, seed=seed)
    assert [record.image.relative_to("/mnt/other") for record in elsewhere] == [
        record.image.relative_to("set") for record in expected
    ]


def test_seeds_draw_others_and_a_larger_shot_holds_a_smaller():
    records = records_of()
    draws = [frozenset(few_shot(records, shot=8, seed=seed)) for seed in range(10)]
    assert len(set(draws)) == 10
    assert draws[0] < set(few_shot(records, shot=16, seed=0))
    shown = Counter(
        record.split for seed in range(200) for record in few_shot(records, shot=2, seed=seed) if not record.anomalous
    )
    assert 0.03 < shown["test"] / shown.total() < 0.3  # 3 of 23 flawless ones are in the test split


def test_few_shot_draws_are_pinned():
    # a changed hash would silently change what everybody's few-shot numbers mean
    chosen = few_shot(records_of(), shot=4, seed=0)
    assert [record.image.relative_to("set/bottle").as_posix() for record in chosen[4:]] == [
        "train/good/1.png",
        "train/good/9.png",
        "test/bent/8.png",
        "test/bent/6.png",
    ]


def test_few_shot_needs_enough_of_each_class():
    records = [record for record in records_of() if record.class_name == "bottle" or not record.anomalous]
    with pytest.raises(DataError, match=r"class Nuss, groß: 0 anomalous image\(s\), data.shot=8 needs 4"):
        few_shot(records, shot=8, seed=0)
    with pytest.raises(DataError, match=r"class Nuss, groß: 12 anomalous image\(s\), data.shot=26 needs 13"):
        few_shot(records_of(), shot=26, seed=0)
    with pytest.raises(DataError, match=r"data.shot=3: expected an even number from 2"):
        few_shot(records_of(), shot=3, seed=0)


def test_training_records_follow_the_configuration():
    dataset = Dataset(Path("set"), "mvtec", records_of())
    assert training_records(dataset, DataConfig()) == dataset.records
    assert training_records(dataset, DataConfig(labelled="test")) == dataset.of(split="test")
    shots = training_records(dataset, DataConfig(mode="few_shot", shot=8, labelled="test"), seed=5)
    assert shots == few_shot(dataset.records, shot=8, seed=5)
    train_only = Dataset(Path("set"), "mvtec", dataset.of(split="train"))
    with pytest.raises(DataError, match=r"set: no image in its test split.*set it to all"):
        training_records(train_only, DataConfig(labelled="test"))


def test_few_shot_draws_from_a_training_split_that_has_both_kinds_of_each_class():
    def splits(records: list[Record]) -> set[str]:
        chosen = training_records(Dataset(Path("lists"), "jsonl", records), DataConfig(mode="few_shot", shot=12))
        return {record.split for record in chosen if record.anomalous}

    records = records_of()
    assert splits(records) == {"test"}  # as MVTec is: its training split is flawless
    half = [replace(record, split="train") if int(record.image.stem) < 6 else record for record in records]
    assert splits(half) == {"train"}
    # of one class the training split is flawless: every labelled sample
    other = [replace(one, split="test") if one.anomalous and one.class_name == "bottle" else one for one in half]
    assert splits(other) == {"train", "test"}


def test_missing_masks_are_refused_by_name_and_count():
    records = records_of()
    check_masks(records)
    bare = [replace(record, mask=None) for record in records]
    with pytest.raises(DataError, match=r"24 anomalous image\(s\) without a mask: set/bottle/test/bent/0.png, .*, …: "):
        check_masks(bare)


@pytest.fixture
def stored(tmp_path) -> list[Record]:
    records = records_of(tmp_path / "set", normal=2, anomalous=2)
    for record in records:
        record.image.parent.mkdir(parents=True, exist_ok=True)
        record.image.write_bytes(str(record.image.relative_to(tmp_path)).encode())
    return records


def test_a_saved_list_comes_back_from_another_place(stored, tmp_path):
    random.Random(0).shuffle(stored)
    save_list(stored, tmp_path / "list.json", root=tmp_path / "set")
    assert load_list(tmp_path / "list.json", root=tmp_path / "set") == stored
    assert str(tmp_path) not in (tmp_path / "list.json").read_text()
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = load_list(tmp_path / "list.json", root=tmp_path / "moved")
    assert [record.image.relative_to(tmp_path / "moved") for record in moved] == [
        record.image.relative_to(tmp_path / "set") for record in stored
    ]
    assert [record.mask is None for record in moved] == [record.mask is None for record in stored]


def test_a_list_may_name_images_beside_the_root(stored, tmp_path):
    (tmp_path / "lists").mkdir()
    save_list(stored, tmp_path / "list.json", root=tmp_path / "lists")
    loaded = load_list(tmp_path / "list.json", root=tmp_path / "lists")
    assert [record.image.resolve() for record in loaded] == [record.image for record in stored]


def test_a_list_notices_changed_and_missing_images(stored, tmp_path):
    save_list(stored, tmp_path / "list.json", root=tmp_path)
    stored[1].image.write_bytes(b"x")
    stored[2].image.write_bytes(b"y")
    with pytest.raises(
        DataError, match=rf"list.json: 2 of {len(stored)} images have other content .* first .*train/good/1.png"
    ):
        load_list(tmp_path / "list.json", root=tmp_path)
    stored[1].image.unlink()
    with pytest.raises(DataError, match=r"train/good/1.png: cannot be read"):
        load_list(tmp_path / "list.json", root=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"records": [{}]}',
        '{"records": [3]}',
        '{"records": [{"sha256": "0", "image": "a", "mask": null, "what": 1}]}',
    ],
)
def test_another_file_than_a_list_is_named(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"list.json: not a list of records"):
        load_list(tmp_path / "list.json", root=tmp_path)
    with pytest.raises(DataError, match=r"gone.json: no such file"):
        load_list(tmp_path / "gone.json", root=tmp_path)


def test_a_run_that_goes_on_notices_other_images(stored, tmp_path):
    listing = tmp_path / TRAINING_LIST
    save_list(stored, listing, root=tmp_path)
    assert read_hashes(listing) == [json.loads(listing.read_text())["records"][n]["sha256"] for n in range(len(stored))]
    check_same_images(listing, stored[::-1])
    with pytest.raises(DataError, match=r"started with other images: 2 of them are gone or changed, 0 are new"):
        check_same_images(listing, stored[2:])
    stored[0].image.write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"1 of them are gone or changed, 1 are new: restore the set, or name a new run"
    ):
        check_same_images(listing, stored)
    listing.write_text('{"records": [{}]}')
    with pytest.raises(DataError, match=r"training.json: not a list of records"):
        read_hashes(listing)


@pytest.mark.parametrize("purpose", ["test", "calibrate"])
def test_images_that_were_learned_from_are_refused_by_content(stored, tmp_path, purpose):
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    images = [record.image for record in stored]
    check_not_trained_on(run, images)  # no list: a saved detector
    check_not_trained_on(tmp_path / "gone", images)
    save_list(stored[:3], run / TRAINING_LIST, root=tmp_path)
    copy = tmp_path / "Kopie, groß.png"
    copy.write_bytes(images[1].read_bytes())
    for source in (run, run / "model"):
        check_not_trained_on(source, [*images[3:], tmp_path / "unreadable.png"], purpose=purpose)
        with pytest.raises(DataError, match=rf"^1 of 2 images to {purpose} on are among .* first {copy}: {purpose} on"):
            check_not_trained_on(source, [images[5], copy], purpose=purpose)


def test_a_list_is_plain_json(stored, tmp_path):
    save_list(stored[:1], tmp_path / "list.json", root=tmp_path)
    (row,) = json.loads((tmp_path / "list.json").read_text(encoding="utf-8"))["records"]
    assert row["image"] == "set/bottle/train/good/0.png"
    assert row["sha256"] == "e16d8d6a526b607028bc6818134d3c7395c8851ce817d4fd81818f99a3e1e12e"  # sha256sum


def test_an_overlap_is_found_under_another_name(stored, tmp_path):
    train, test = stored[:5], stored[5:]
    check_no_overlap(train, test)
    copy = tmp_path / "copy.png"
    copy.write_bytes(train[3].image.read_bytes())
    with pytest.raises(
        DataError, match=rf"1 training image\(s\) are in a test set too, first {train[3].image} = {copy}:"
    ):
        check_no_overlap(train, [*test, replace(test[0], image=copy)])
    with pytest.raises(DataError, match=r"5 training image\(s\)"):
        check_no_overlap(train, train)


def test_only_files_of_equal_size_are_hashed(tmp_path, monkeypatch):
    for name, size in (("a", 3), ("b", 4), ("c", 4), ("d", 5)):
        (tmp_path / name).write_bytes(name.encode() * size)
    hashed = []
    monkeypatch.setattr("aaclip.data.selection.hash_file", lambda image: hashed.append(image.name) or image.name)
    a, b, c, d = (Record(tmp_path / name, "x", "train", False) for name in "abcd")
    check_no_overlap([a, b], [c, d])
    assert sorted(hashed) == ["b", "c"]


def test_an_overlap_with_a_missing_file_is_an_error(stored, tmp_path):
    gone = replace(stored[0], image=tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone.png: cannot be read \(No such file"):
        check_no_overlap([gone], stored)
