"""Lists (VisA, JSONL, meta.json): their order, missing masks, and mistakes, each one line that says what to do."""

import json
from pathlib import Path

import pytest

from aaclip.data import DataError, read_dataset


def put_all(root: Path, *names: str) -> None:
    """Files that are never opened: a list is read by its names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_order_of_a_list_does_not_matter(tmp_path):
    put_all(tmp_path, "0.png", "1.png", "2.png")
    for order in ("012", "201"):
        lines = (f'{{"image_path": "{number}.png", "label": 0, "class_name": "x"}}' for number in order)
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        assert [record.image.name for record in read_dataset(tmp_path).records] == ["0.png", "1.png", "2.png"]


def test_a_normal_picture_needs_no_mask(tmp_path):
    put_all(tmp_path, "0.png")
    (tmp_path / "a.jsonl").write_text('{"image_path": "0.png", "label": 0, "class_name": "x", "mask_path": "gone.png"}')
    data = read_dataset(tmp_path)
    assert (data.records[0].mask, data.problems) == (None, [])


@pytest.mark.parametrize("stated", ["x/gone.png", ""])
def test_a_missing_mask_of_a_list_is_none_and_named(tmp_path, stated):
    put_all(tmp_path, "x/0.png", "x/1.png", "x/0_mask.png")
    entries = [
        {"image_path": "x/0.png", "label": 1, "class_name": "x", "mask_path": "x/0_mask.png"},
        {"image_path": "x/1.png", "label": 1, "class_name": "x", "mask_path": stated},
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, entries)))
    data = read_dataset(tmp_path)
    assert [record.mask for record in data.records] == [tmp_path / "x/0_mask.png", None]
    (problem,) = data.problems
    assert problem.startswith(f"{tmp_path / 'x/1.png'}: no mask")


def test_a_list_without_masks_has_no_missing_ones(tmp_path):
    put_all(tmp_path, "0.png")
    (tmp_path / "a.jsonl").write_text('{"image_path": "0.png", "label": 1, "class_name": "x", "mask_path": null}')
    assert read_dataset(tmp_path).problems == []


GOOD = {"image_path": "0.png", "label": 0, "class_name": "x", "mask_path": ""}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, got"),
        (json.dumps(GOOD | {"label": "1"}), "line 2: expected label to be 0 .normal. or 1 .anomalous., got '1'"),
        (json.dumps(GOOD | {"label": None}), "line 2: expected label"),
        (json.dumps(GOOD | {"class_name": ""}), "line 2: expected class_name as text, got ''"),
        (json.dumps(GOOD | {"image_path": 3}), "line 2: expected image_path as text, got 3"),
        (json.dumps(GOOD | {"mask_path": ["m"]}), "line 2: expected mask_path as text"),
        (json.dumps(GOOD), "1 picture.s. are listed twice, first .*0.png"),
    ],
)
def test_a_bad_line_of_json_is_named(tmp_path, line, message):
    put_all(tmp_path, "0.png")
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) + "\n" + line)
    with pytest.raises(DataError, match=message) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("object,split,image,mask\n", "no column label; needed are object,split,label,image,mask"),
        ("object,split,label,image,mask\n", "no pictures are listed in 1cls.csv"),
        (
            "object,split,label,image,mask\na,test,bad,0.png,\n",
            "line 2: expected the label normal or anomaly, got 'bad'",
        ),
        ("object,split,label,image,mask\na,val,normal,0.png,\n", "line 2: expected the split train or test, got 'val'"),
        ("object,split,label,image,mask\na,test\n", "line 2: expected 5 cells"),
        ("object,split,label,image,mask\na,test,normal,gone.png,\n", "none of the 1 listed pictures is there, first"),
        ('object,split,label,image,mask\n"' + "a," * 70_000, "not comma-separated values"),
        ("object,split,label,image,mask\na,test,normal,\xff,\n", "not UTF-8"),
    ],
)
def test_a_bad_table_is_named(tmp_path, text, message):
    put_all(tmp_path, "0.png")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ([], "meta.json: expected a JSON object"),
        ({"val": {}}, "expected the split train or test, got 'val'"),
        ({"test": []}, "meta.json, test: expected a JSON object"),
        ({"test": {"nut": {}}}, "test, nut: expected a JSON array"),
        ({"test": {"nut": [3]}}, "test, nut, entry 1: expected a JSON object, got 3"),
        ({"test": {"nut": [{"img_path": "0.png"}]}}, "entry 1: expected anomaly to be 0"),
        ({"test": {"nut": []}}, "no pictures are listed in meta.json"),
    ],
)
def test_a_bad_meta_file_is_named(tmp_path, meta, message):
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)
