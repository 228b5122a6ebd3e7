"""Caption files: columns by header, lines of captions and of faults, and the folder that paths are relative to."""

import json
from pathlib import Path

import pytest
import toy_captions as toy
from hypothesis import given
from hypothesis import strategies as st

from clip_common.captions import CaptionedImage, ReadLog, choose_files, find_caption_files, read_caption_files
from clip_common.captions.json_files import read_numbered_json
from clip_common.captions.splits import find_file_split
from clip_common.errors import DataError

folder = toy.folder


def read(file: Path, format: str = "table", **columns: str) -> tuple[list[CaptionedImage], ReadLog]:
    log = ReadLog(columns=columns)
    return read_caption_files([file], format=format, log=log), log


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,caption", "c.jpg,a dog, running"),
        ("image_name,comment_number,comment", "c.jpg,0,a dog, running"),
        ("image_name| comment_number| comment", "c.jpg| 0| a dog, running"),
        ("image,caption,id", 'c.jpg,"a dog, running",17'),
        ("file_name,text", "c.jpg,a dog, running"),
        ("File Name;Caption", "c.jpg;a dog, running"),
        ("text\tid\tFILENAME", "a dog, running\t3\tc.jpg"),
        ('"image","sentence"', '"c.jpg","a dog, running"'),
        ("id,path,title,extra", '4,c.jpg,"a dog, running",x'),
        ("filepath|comment|caption", "c.jpg|something else|a dog, running"),
        ("c.jpg,a dog, running", ""),
    ],
    ids=lambda cell: cell[:36],
)
def test_columns_go_by_the_header(folder, header, row):
    (folder / "any.csv").write_text(f"{header}\n{row}\n")
    images, log = read(folder / "any.csv")
    assert [(image.name, image.captions) for image in images] == [("c.jpg", ("a dog, running",))]
    assert log.problems == []
    assert images[0].path.is_file()


def test_columns_that_the_user_names(folder):
    (folder / "any.csv").write_text("photo,caption,words,part\nc.jpg,no,a dog,dev\n")
    images, log = read(folder / "any.csv", image="photo", caption="words", split="part")
    assert [(image.name, image.captions, image.split) for image in images] == [("c.jpg", ("a dog",), "val")]
    assert "any.csv: image from column photo; caption from column words; split from column part" in log.notes[0]
    _, log = read(folder / "any.csv", image="picture")
    assert "no column picture for the image (data.columns.image), got 'photo,caption,words,part'" in str(
        log.problems[0]
    )


@pytest.mark.parametrize("header", ["photo,number,words", "c.jpg,0,A brown and white dog", "c.jpg| 0| A dog"])
def test_an_unknown_header_is_shown_and_not_read_as_data(folder, header):
    (folder / "captions.txt").write_text(f"{header}\nc.jpg,0,a dog\n")
    images, log = read(folder / "captions.txt", "kaggle")
    assert images == []
    got = ",".join(part.strip() for part in header.split("|"))
    assert str(log.problems[0]).startswith(f"{folder / 'captions.txt'}, line 1: no column for the image, got {got!r}")


@pytest.mark.parametrize("name", ["a long caption " * 20, "a\0.jpg"], ids=["too long", "nul"])
def test_a_name_that_no_file_can_have_costs_its_row(folder, name):
    (folder / "any.csv").write_text(f"image,caption\n{name},swapped\nc.jpg,one\nd.jpg,two\n")
    images, log = read(folder / "any.csv")
    assert len(images) == 2
    assert [(problem.kind, problem.line) for problem in log.problems] == [("row", 2)]


def test_half_a_character_in_json_is_named_and_can_be_printed(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "\\ud800.jpg", "text": "\\ud800"}\n')
    _, log = read(folder / "metadata.jsonl", "imagefolder")
    str(log.problems[0]).encode()
    assert "is not valid Unicode" in str(log.problems[0])


def test_of_two_columns_of_one_name_none_is_chosen(folder):
    (folder / "any.csv").write_text("image,caption,Caption,,\nc.jpg,one,two,,\n")
    _, log = read(folder / "any.csv")
    assert "line 1: two columns" in str(log.problems[0])
    (folder / "any.csv").write_text("image,caption,,\nc.jpg,one,,\n")
    assert read(folder / "any.csv")[0][0].captions == ("one",)


def test_each_caption_has_its_line(folder):
    (folder / "any.csv").write_text('image,caption\nc.jpg,"one\ntwo"\n\nd.jpg,three\nc.jpg,four\n')
    images, _ = read(folder / "any.csv")
    assert [[place.number for place in image.places] for image in images] == [[2, 6], [5]]


@pytest.mark.parametrize("stray", ["/nowhere/c.jpg", "../c.jpg", "Images/../../c.jpg"])
def test_a_path_that_leaves_the_set_costs_its_row(folder, stray):
    (folder.parent / "c.jpg").write_bytes(toy.jpeg())
    (folder / "captions.txt").write_text(f"image,caption\n{stray},stray\nc.jpg,one\nd.jpg,two\n")
    images, log = read(folder / "captions.txt", "kaggle")
    assert [(image.name, image.path.is_file()) for image in images] == [("c.jpg", True), ("d.jpg", True)]
    assert [(problem.kind, problem.line) for problem in log.problems] == [("row", 2)]


def test_a_list_of_absolute_paths_is_read(folder):
    rows = [f"{folder / 'Images' / name},said" for name in ("c.jpg", "d.jpg")]
    (folder / "any.csv").write_text("\n".join(["image,caption", *rows]))
    images, log = read(folder / "any.csv")
    assert all(image.path.is_file() for image in images)
    assert log.problems == []


@pytest.mark.parametrize(
    ("listed", "there", "told"),
    [
        ("c.jpg", "lists/c.jpg", "in {}/lists, relative to the folder of the file"),
        ("c.jpg", "lists/val2017/c.jpg", "in {}/lists/val2017, relative to the folder of the file"),
        ("c.jpg", "lists/my own/c.jpg", "in {}/lists/my own, relative to the folder of the file"),
        ("photos/c.jpg", "photos/c.jpg", "in ., relative to the working folder"),
        ("c.jpg", "images/c.jpg", "in images, relative to the working folder"),
    ],
)
def test_paths_are_relative_to_the_file_or_the_working_folder(tmp_path, monkeypatch, listed, there, told):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "lists" / "any.csv"
    for path, content in ((file, f"image,caption\n{listed},said\n".encode()), (tmp_path / there, toy.jpeg())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    images, log = read(file)
    assert images[0].path.is_file()
    assert log.notes[-1] == f"{file}: images {told.format(tmp_path)}"


def test_the_row_of_results_csv_that_lacks_a_pipe(folder):
    rows = ["image_name| comment_number| comment", "c.jpg| 3| one", "c.jpg| 4   A dog runs .", "d.jpg| 0| two"]
    (folder / "results.csv").write_text("\n".join(rows))
    images, log = read(folder / "results.csv", "flickr30k")
    assert [image.captions for image in images] == [("one", "A dog runs ."), ("two",)]
    assert log.problems == []


def test_a_quote_that_is_never_closed_costs_its_row(folder):
    rows = ["image,caption", 'c.jpg,"open', "d.jpg,one", 'zwölf.jpg,"two"', 'd.jpg,"three"']
    (folder / "any.csv").write_text("\n".join(rows), encoding="utf-8")
    images, log = read(folder / "any.csv")
    assert [image.captions for image in images] == [("one", "three"), ("two",)]
    assert [problem.line for problem in log.problems] == [2]


def test_files_of_splits_are_read_together_and_an_image_in_two_is_a_leak(folder):
    (folder / "train.csv").write_text("image,caption\nc.jpg,one\nd.jpg,two\n")
    (folder / "val.csv").write_text("image,caption\nzwölf.jpg,three\nd.jpg,four\n", encoding="utf-8")
    files = choose_files(find_caption_files(folder)["table"], folder, format="table")
    log = ReadLog()
    images = read_caption_files(files, format="table", log=log)
    assert [(image.name, image.split) for image in images] == [("c.jpg", "train"), ("zwölf.jpg", "val")]
    assert f"{folder / 'val.csv'}, line 3: d.jpg in train and val" in str(log.problems[0])
    (folder / "more.csv").write_text("image,caption\nc.jpg,one\n")
    with pytest.raises(DataError, match=r"several files of the format table \(more.csv, train.csv, val.csv\)"):
        choose_files(find_caption_files(folder)["table"], folder, format="table")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_train2017.json", "train"),
        ("coco_karpathy_val.json", "val"),
        ("test.csv", "test"),
        ("dev-captions.tsv", "val"),
        ("set/validation/metadata.csv", "val"),
        ("set/metadata.csv", None),
        ("train_val.csv", None),
        ("trainers.csv", None),
        ("captions.txt", None),
    ],
)
def test_splits_that_names_of_files_state(name, split):
    assert find_file_split(Path(name)) == split


values = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))


@given(st.lists(values) | st.dictionaries(st.text(max_size=5), values) | values, st.sampled_from([None, 0, 2]))
def test_json_is_read_as_the_standard_library_reads_it_with_lines(value, indent):
    text = json.dumps(value, indent=indent)
    read, lines = read_numbered_json(text)
    assert read == json.loads(text)
    for key, numbers in lines.items():
        entries = value if key is None else value[key]
        assert len(numbers) == len(entries)
        assert numbers == sorted(numbers)
    if isinstance(value, list) and indent is not None:
        inner = [text.split("\n")[number - 1].strip() for number in lines[None]]
        assert all(line.startswith(json.dumps(entry)[0]) for line, entry in zip(inner, value, strict=True))


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": }', "[1 2]", "[1,]", '{"a": [1], "b"}', "[] 1", '{"a": 1,}', "[\n1,\n}"]
)
def test_what_is_not_json_has_a_line(text):
    with pytest.raises(json.JSONDecodeError) as ours:
        read_numbered_json(text)
    with pytest.raises(json.JSONDecodeError) as theirs:
        json.loads(text)
    assert ours.value.lineno == theirs.value.lineno
