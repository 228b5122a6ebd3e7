"""Collections: captions of data sets, lines of text files, shards."""

import json

import pytest
import toy_models

from clip_common.errors import DataError
from edgeglass.aligner.collection import scan_collection
from edgeglass.config import MODALITIES


def write_set(folder, rows) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_captions_of_a_data_set_are_its_texts(tmp_path):
    toy_models.draw_image(tmp_path / "images" / "été.png", seed=1)
    toy_models.write_sound(tmp_path / "sounds" / "1.wav", seed=1)
    (tmp_path / "readme.txt").write_text("no caption")
    rows = [
        {"image": "images/été.png", "audio": "sounds/1.wav", "captions": ["a red ball", " a ball "]},
        {"audio": "sounds/1.wav", "caption": "beep"},
        {"image": "images/été.png", "caption": "another"},
    ]
    write_set(tmp_path, rows)
    found = scan_collection(tmp_path, MODALITIES)
    assert [(item.id, item.source, item.payload["file"]) for item in found.items["text"]] == [
        ("images/été.png#1", "a red ball", "images/été.png"),
        ("images/été.png#1~2", "another", "images/été.png"),
        ("images/été.png#2", "a ball", "images/été.png"),
        ("sounds/1.wav#1", "beep", "sounds/1.wav"),
    ]
    assert [item.id for item in found.items["image"]] == ["images/été.png"]
    assert (found.unreadable, found.foreign) == ({}, {})
    assert "text" not in scan_collection(tmp_path, ("image", "audio")).items


def test_a_list_of_captions_alone_is_a_collection(tmp_path):
    write_set(tmp_path, [{"caption": "one"}, {"caption": "two"}])
    assert [item.source for item in scan_collection(tmp_path, MODALITIES).items["text"]] == ["one", "two"]


def test_a_damaged_list_is_named_and_files_are_found(tmp_path):
    toy_models.draw_image(tmp_path / "a.png", seed=1)
    write_set(tmp_path, [])
    (tmp_path / "data.jsonl").write_text("{no json\n")
    found = scan_collection(tmp_path, MODALITIES)
    assert [item.id for item in found.items["image"]] == ["a.png"]
    assert "data.jsonl" in found.unreadable["."]


def test_images_inside_parquet_files_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    picture = toy_models.draw_image(tmp_path / "drawn" / "a.png", seed=1).read_bytes()
    folder = tmp_path / "set"
    folder.mkdir()
    table = pa.table({"image": [{"bytes": picture, "path": "a.png"}], "caption": ["a red ball"]})
    pyarrow.parquet.write_table(table, folder / "train.parquet")
    found = scan_collection(folder, MODALITIES)
    assert [item.source for item in found.items["text"]] == ["a red ball"]
    assert "1 images and sounds inside parquet files are left out" in found.unreadable["."]


def test_lines_are_items_with_stamps_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffone\r\n\r\n two \n", encoding="utf-8")
    items = scan_collection(tmp_path, ("text",)).items["text"]
    assert [(item.id, item.source) for item in items] == [("a.txt:1", "one"), ("a.txt:3", "two")]
    (tmp_path / "a.txt").write_text("one\n\nthree\n", encoding="utf-8")
    changed = scan_collection(tmp_path, ("text",)).items["text"]
    assert [item.stamp == other.stamp for item, other in zip(items, changed, strict=True)] == [True, False]


def test_shards_are_disjoint_and_depend_on_ids_alone(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, range(1, 101))), encoding="utf-8")
    whole = scan_collection(tmp_path, ("text",))
    parts = [{item.id for item in whole.take_shard((number, 3)).items["text"]} for number in (1, 2, 3)]
    assert sorted(id for part in parts for id in part) == sorted(item.id for item in whole.items["text"])
    assert min(map(len, parts)) > 20
    (tmp_path / "b.txt").write_text("more", encoding="utf-8")
    again = scan_collection(tmp_path, ("text",)).take_shard((1, 3)).items["text"]
    assert {item.id for item in again} - {"b.txt:1"} == parts[0]
    with pytest.raises(DataError, match="not a folder"):
        scan_collection(tmp_path / "a.txt", ("text",))
