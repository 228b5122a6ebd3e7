"""Each format: a folder is written by hand and read back. Every mistake is one line that says what to do."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from aaclip.data import FORMATS, DataError, Dataset, Record, read_dataset
from clip_common.synthetic import write_mvtec


def put(file: Path, colour: int = 90) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (colour, 90, 30)).save(file)
    return file


def put_all(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        put(root / name, colour=number)


def seen(data: Dataset) -> set[tuple]:
    """What was read, without the root."""

    def below(file: Path | None) -> str | None:
        return None if file is None else file.relative_to(data.root).as_posix()

    return {
        (below(record.image), record.class_name, record.split, record.anomalous, below(record.mask), record.defect)
        for record in data.records
    }


def write_inspection(root: Path) -> set[tuple]:
    put_all(root, "metal nut/train/good/0.png", "metal nut/test/good/0.png", "metal nut/test/kratzer, groß/0.JPG")
    put_all(root, "metal nut/ground_truth/kratzer, groß/0_mask.png", "螺丝/train/good/a.png", "螺丝/test/bent/a.png")
    put_all(root, "螺丝/ground_truth/bent/a_mask.png")
    return {
        ("metal nut/train/good/0.png", "metal nut", "train", False, None, "good"),
        ("metal nut/test/good/0.png", "metal nut", "test", False, None, "good"),
        (
            "metal nut/test/kratzer, groß/0.JPG",
            "metal nut",
            "test",
            True,
            "metal nut/ground_truth/kratzer, groß/0_mask.png",
            "kratzer, groß",
        ),
        ("螺丝/train/good/a.png", "螺丝", "train", False, None, "good"),
        ("螺丝/test/bent/a.png", "螺丝", "test", True, "螺丝/ground_truth/bent/a_mask.png", "bent"),
    }


def write_visa(root: Path) -> set[tuple]:
    put_all(root, "c/Data/Images/Normal/0.JPG", "c/Data/Images/Normal/1.JPG", "c/Data/Images/Anomaly/0.JPG")
    put_all(root, "c/Data/Masks/Anomaly/0.png")
    rows = [
        ("object", "split", "label", "image", "mask"),
        ("candle, white", "train", "normal", "c/Data/Images/Normal/0.JPG", ""),
        ("candle, white", "test", "normal", "c/Data/Images/Normal/1.JPG", ""),
        ("candle, white", "test", "anomaly", "c/Data/Images/Anomaly/0.JPG", "c/Data/Masks/Anomaly/0.png"),
    ]
    (root / "split_csv").mkdir()
    with (root / "split_csv" / "1cls.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows(rows)
    return {
        ("c/Data/Images/Normal/0.JPG", "candle, white", "train", False, None, "good"),
        ("c/Data/Images/Normal/1.JPG", "candle, white", "test", False, None, "good"),
        ("c/Data/Images/Anomaly/0.JPG", "candle, white", "test", True, "c/Data/Masks/Anomaly/0.png", "anomaly"),
    }


def write_btad(root: Path) -> set[tuple]:
    put_all(root, "01/train/ok/0.bmp", "01/test/ok/1.bmp", "01/test/ko/2.bmp", "01/ground_truth/ko/2.png")
    put_all(root, "03/test/ko/0.png", "03/ground_truth/ko/0.bmp", "03/train/ok/7.bmp")
    return {
        ("01/train/ok/0.bmp", "01", "train", False, None, "good"),
        ("01/test/ok/1.bmp", "01", "test", False, None, "good"),
        ("01/test/ko/2.bmp", "01", "test", True, "01/ground_truth/ko/2.png", "ko"),
        ("03/test/ko/0.png", "03", "test", True, "03/ground_truth/ko/0.bmp", "ko"),
        ("03/train/ok/7.bmp", "03", "train", False, None, "good"),
    }


def write_bmad(root: Path) -> set[tuple]:
    put_all(root, "Brain/train/good/0.png", "Brain/valid/good/img/1.png", "Brain/valid/Ungood/img/2.png")
    put_all(root, "Brain/valid/Ungood/label/2.png", "Brain/test/good/img/3.png", "Brain/test/good/label/3.png")
    put_all(root, "Brain/test/Ungood/img/4.png", "Brain/test/Ungood/label/4.png")
    return {
        ("Brain/train/good/0.png", "Brain", "train", False, None, "good"),
        ("Brain/valid/good/img/1.png", "Brain", "train", False, None, "good"),  # valid/Ungood/img/2.png: left out
        ("Brain/test/good/img/3.png", "Brain", "test", False, None, "good"),
        ("Brain/test/Ungood/img/4.png", "Brain", "test", True, "Brain/test/Ungood/label/4.png", "Ungood"),
    }


def write_polyp(root: Path) -> set[tuple]:
    put_all(root, "Kvasir/images/a.jpg", "Kvasir/images/b.jpg", "Kvasir/masks/a.png", "Kvasir/masks/b.jpg")
    return {
        ("Kvasir/images/a.jpg", "Kvasir", "test", True, "Kvasir/masks/a.png", "polyp"),
        ("Kvasir/images/b.jpg", "Kvasir", "test", True, "Kvasir/masks/b.jpg", "polyp"),
    }


def write_jsonl(root: Path) -> set[tuple]:
    put_all(root, "x/0.png", "x/1.png", "x/2.png", "x/1_mask.png")
    entries = [
        {"image_path": "x/0.png", "label": 0, "class_name": "zwölf", "mask_path": ""},
        {"image_path": f"{root.name}/x/1.png", "label": 1.0, "class_name": "zwölf", "mask_path": "x/1_mask.png"},
        {"image_path": "x/2.png", "label": 0, "class_name": "zwölf"},
    ]
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (root / "Train_full.jsonl").write_text(f"{lines[0]}\n\n", encoding="utf-8")
    (root / "full-shot.jsonl").write_text("\r\n".join(lines[1:]), encoding="utf-8")
    return {
        ("x/0.png", "zwölf", "train", False, None, "good"),
        ("x/1.png", "zwölf", "test", True, "x/1_mask.png", "anomaly"),
        ("x/2.png", "zwölf", "test", False, None, "good"),
    }


def write_meta(root: Path) -> set[tuple]:
    put_all(root, "nut/a/0.png", "nut/b/1.png", "nut/m/1.png")
    good = {"img_path": "nut/a/0.png", "mask_path": "", "cls_name": "nut", "specie_name": "good", "anomaly": 0}
    bent = good | {"img_path": "nut/b/1.png", "mask_path": "nut/m/1.png", "specie_name": "bent", "anomaly": 1}
    (root / "meta.json").write_text(json.dumps({"train": {"nut": [good]}, "test": {"nut": [bent], "bolt": []}}))
    return {
        ("nut/a/0.png", "nut", "train", False, None, "good"),
        ("nut/b/1.png", "nut", "test", True, "nut/m/1.png", "bent"),
    }


def write_folder(root: Path) -> set[tuple]:
    put_all(root, "Good/0.png", "ok/1.png", "defective/2.png")
    return {
        ("Good/0.png", root.name, "test", False, None, "good"),
        ("ok/1.png", root.name, "test", False, None, "good"),
        ("defective/2.png", root.name, "test", True, None, "defective"),
    }


WRITERS = {
    "mvtec": write_inspection,
    "visa": write_visa,
    "btad": write_btad,
    "mpdd": write_inspection,
    "bmad": write_bmad,
    "polyp": write_polyp,
    "jsonl": write_jsonl,
    "meta": write_meta,
    "folder": write_folder,
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_is_told_from_its_files_and_read_back(tmp_path, format):
    expected = WRITERS[format](tmp_path)
    data = read_dataset(tmp_path)
    assert data.format == ("mvtec" if format == "mpdd" else format)
    assert seen(data) == expected
    assert len(data.records) == len(expected)
    assert data.problems == []
    named = read_dataset(str(tmp_path), format=format)
    assert (named.format, named.records) == (format, data.records)


@pytest.mark.parametrize("format", FORMATS)
def test_another_format_than_the_folder_has_is_refused(tmp_path, format):
    WRITERS["btad" if format == "polyp" else "polyp"](tmp_path)
    with pytest.raises(DataError, match=rf"not a set of the format {format}; expected \S"):
        read_dataset(tmp_path, format=format)


@pytest.mark.parametrize(
    ("format", "class_name"), [("mvtec", "螺丝"), ("btad", "01"), ("bmad", "Brain"), ("polyp", "Kvasir")]
)
def test_a_single_class_folder_is_a_set(tmp_path, monkeypatch, format, class_name):
    WRITERS[format](tmp_path)
    expected = [record for record in read_dataset(tmp_path).records if record.class_name == class_name]
    data = read_dataset(tmp_path / class_name)
    assert (data.format, data.records) == (format, expected)
    monkeypatch.chdir(tmp_path / class_name)
    assert read_dataset(".").classes == [class_name]


def test_classes_choose(tmp_path):
    write_inspection(tmp_path)
    (tmp_path / "notes").mkdir()  # no class, and not asked for
    (tmp_path / "metal nut" / "ground_truth" / "kratzer, groß" / "0_mask.png").unlink()
    data = read_dataset(tmp_path, classes=["螺丝"])
    assert data.classes == ["螺丝"]
    assert len(data.records) == 2
    assert data.problems == []
    with pytest.raises(DataError, match=r"no class nut; data\.classes may name metal nut, notes, 螺丝"):
        read_dataset(tmp_path, classes=["nut", "螺丝"])


def test_classes_choose_in_lists_too(tmp_path):
    write_meta(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    entry = {"img_path": "nut/m/1.png", "mask_path": "gone.png", "specie_name": "x", "anomaly": 1}
    meta["test"]["bolt"] = [entry]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert read_dataset(tmp_path).problems == [f"{tmp_path / 'nut/m/1.png'}: no mask; expected {tmp_path / 'gone.png'}"]
    data = read_dataset(tmp_path, classes=["nut"])
    assert (data.classes, len(data.records), data.problems) == (["nut"], 2, [])
    with pytest.raises(DataError, match=r"no class screw; data\.classes may name bolt, nut"):
        read_dataset(tmp_path, classes=["screw"])


def test_the_drawn_world_is_read(tmp_path):
    root = write_mvtec(
        tmp_path / "parts", kinds=["mug"], defects=["hole", "missing part"], train=2, good=1, damaged=1, size=32
    )
    data = read_dataset(root)  # its parts.jsonl is no list of AA-CLIP's
    assert data.format == "mvtec"
    assert [record.defect for record in data.of(split="train")] == ["good"] * 2
    assert [record.defect for record in data.of(split="test")] == ["good", "hole", "missing_part"]
    assert [record.mask is not None for record in data.of(split="test")] == [False, True, True]


def test_hidden_files_and_other_files_are_no_pictures(tmp_path):
    expected = write_inspection(tmp_path)
    put_all(tmp_path, "螺丝/test/bent/._a.png", "螺丝/test/.hidden/a.png", ".cache/train/good/0.png")
    for name in ("Thumbs.db", "notes.txt"):
        (tmp_path / "螺丝" / "test" / "bent" / name).write_text("x")
    (tmp_path / "license.txt").write_text("x")
    (tmp_path / "螺丝" / "train" / "good" / "folder.png").mkdir()
    assert seen(read_dataset(tmp_path)) == expected


def test_the_order_depends_on_names_alone(tmp_path, monkeypatch):
    write_inspection(tmp_path)
    records = read_dataset(tmp_path).records
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: sorted(listed(folder), reverse=True))
    assert read_dataset(tmp_path).records == records


def test_a_missing_mask_is_none_and_named(tmp_path):
    write_inspection(tmp_path)
    (tmp_path / "螺丝" / "ground_truth" / "bent" / "a_mask.png").unlink()
    data = read_dataset(tmp_path)
    (record,) = data.of(classes=["螺丝"], split="test")
    assert record == Record(tmp_path / "螺丝/test/bent/a.png", "螺丝", "test", anomalous=True, mask=None, defect="bent")
    assert data.problems == [
        f"{tmp_path / '螺丝/test/bent/a.png'}: no mask; expected {tmp_path / '螺丝/ground_truth/bent/a_mask.png'}"
    ]


def test_no_format_fits(tmp_path):
    put_all(tmp_path, "holiday/0.png")
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)
    for format in FORMATS:
        assert f"{format} (" in str(error.value)


def test_two_formats_fit(tmp_path):
    write_inspection(tmp_path)
    write_meta(tmp_path)
    with pytest.raises(DataError, match=r"several formats fit: mvtec \(.*\); meta \(.*\): say which by data.format="):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, format="meta").classes == ["nut"]


def test_an_empty_class_folder_is_named(tmp_path):
    write_btad(tmp_path)
    (tmp_path / "02" / "train" / "ok").mkdir(parents=True)
    with pytest.raises(DataError, match=r"02: a class folder without images"):
        read_dataset(tmp_path)
    (tmp_path / "02" / "train" / "ok").rmdir()
    with pytest.raises(DataError, match=r"02: a class folder without images"):
        read_dataset(tmp_path)


def test_a_stranger_among_class_folders_is_named(tmp_path):
    write_btad(tmp_path)
    put_all(tmp_path, "results/0.png")
    with pytest.raises(DataError, match=r"results: not a class of the format btad"):
        read_dataset(tmp_path)
    assert read_dataset(tmp_path, classes=["01", "03"]).classes == ["01", "03"]


def test_a_folder_that_is_not_there_and_a_format_that_is_not(tmp_path):
    with pytest.raises(DataError, match=r"gone: no such folder; data.root"):
        read_dataset(tmp_path / "gone")
    with pytest.raises(DataError, match=r"data.format=coco: expected auto or one of mvtec, visa"):
        read_dataset(tmp_path, format="coco")


def test_a_listed_picture_that_is_missing_is_left_to_the_check(tmp_path):
    write_meta(tmp_path)
    (tmp_path / "nut" / "b" / "1.png").unlink()
    assert len(read_dataset(tmp_path).records) == 2


def test_a_link_keeps_its_name(tmp_path):
    write_inspection(tmp_path / "store")
    (tmp_path / "screw").symlink_to(tmp_path / "store" / "螺丝")
    assert read_dataset(tmp_path / "screw").classes == ["screw"]


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: not name.startswith(".")
)


@settings(max_examples=40, deadline=None)
@given(class_name=NAMES, defect=NAMES, stem=NAMES)
@example(class_name="lists.jsonl", defect="0", stem="0")
def test_any_name_comes_back_as_it_is(tmp_path_factory, class_name, defect, stem):
    root = tmp_path_factory.mktemp("any")
    defect = f"d{defect}"  # never "good"
    folder = root / class_name
    put(folder / "train" / "good" / "0.png")
    image = put(folder / "test" / defect / f"{stem}.png")
    mask = put(folder / "ground_truth" / defect / f"{stem}_mask.png")
    data = read_dataset(root)
    assert Record(image, class_name, "test", anomalous=True, mask=mask, defect=defect) in data.records
    assert data.classes == [class_name]
