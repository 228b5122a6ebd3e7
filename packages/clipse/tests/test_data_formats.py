"""Caption files: every format written and read back; what is refused, in one line."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest
import toy_captions as toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipse.data import check, load_captions
from clipse.data.formats import parse_kaggle

CAPTIONS = toy.CAPTIONS
WRITERS = toy.WRITERS
add = toy.add
folder = toy.folder
jpeg = toy.jpeg
message = toy.message
pairs = toy.pairs
write_karpathy = toy.write_karpathy
write_kaggle = toy.write_kaggle
write_kaggle_unquoted = toy.write_kaggle_unquoted
write_open_clip = toy.write_open_clip
write_shards = toy.write_shards
write_token = toy.write_token


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


def test_commas_quotes_byte_order_marks_and_windows_line_ends_in_kaggles_file(folder):
    write_kaggle_unquoted(folder)
    assert [record.captions for record in load_captions(folder).images] == list(CAPTIONS.values())


def test_a_quote_that_does_not_enclose_the_whole_caption_is_its_own(folder):
    lines = [
        "image,caption",
        'c.jpg,"Stop", said the "man"',
        'c.jpg,"no" entry',
        'd.jpg,"so, ""quoted"""',
        'd.jpg,half "',
    ]
    (folder / "captions.txt").write_text("\n".join(lines))
    assert [record.captions for record in load_captions(folder).images] == [
        ('"Stop", said the "man"', '"no" entry'),
        ('so, "quoted"', 'half "'),
    ]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None], ids=["minimal", "all", "none"])
@pytest.mark.parametrize(("delimiter", "name"), [("\t", "pairs.tsv"), (",", "pairs.csv")])
def test_tables_are_read_quoted_or_plain(folder, delimiter, name, quoting):
    rows = [("filepath", "title"), *((f"Images/{image}", caption) for image, caption in pairs())]
    if quoting is None:
        rows = [(image, caption.replace(",", "")) for image, caption in rows]
        (folder / name).write_bytes("\r\n".join(delimiter.join(row) for row in rows).encode())
    else:
        with (folder / name).open("w", newline="", encoding="utf-8-sig") as stream:
            csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows(rows)
    expected = [tuple(c.replace(",", "") if quoting is None else c for c in said) for said in CAPTIONS.values()]
    assert [record.captions for record in load_captions(folder).images] == expected


def test_a_quoted_caption_of_two_lines_stays_one_caption(folder):
    (folder / "pairs.csv").write_text('filepath,title\nImages/c.jpg,"one\n\ntwo"\nImages/d.jpg,three\n')
    assert [record.captions for record in load_captions(folder).images] == [("one\n\ntwo",), ("three",)]


words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), min_size=1)


@given(st.lists(st.tuples(st.from_regex(r"[\w ,]{1,9}\.jpg", fullmatch=True), words.filter(str.strip)), min_size=1))
def test_whatever_a_csv_writer_writes_is_read_back(rows):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "captions.txt")
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("image", "caption"), *rows])
        found = [(row.image, row.captions[0]) for row in parse_kaggle(file)]
    assert found == [(name.strip(), caption) for name, caption in rows]


def test_karpathys_splits_with_restval_in_training(folder):
    write_karpathy(folder)
    data = load_captions(folder)
    assert [record.split for record in data.images] == ["train", "train", "val", "test"]


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


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), min_size=1)
        .map(str.strip)
        .filter(lambda text: text and not (text[0] == text[-1] == '"')),
        min_size=1,
    )
)
def test_an_unquoted_caption_is_read_to_the_letter(captions):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "captions.txt")
        file.write_text("image,caption\n" + "".join(f"a.jpg,{caption}\n" for caption in captions), encoding="utf-8")
        assert [row.captions[0] for row in parse_kaggle(file)] == captions


def test_the_lemmas_beside_the_original_captions_are_not_taken_for_them(folder):
    write_token(folder)
    (folder / "Flickr8k.lemma.token.txt").write_text("c.jpg#0\tlemma\nd.jpg#0\tlemma\n")
    for format in ("auto", "token"):
        assert len(load_captions(folder, format=format).images) == len(CAPTIONS)


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


def test_an_image_in_two_splits(folder):
    write_kaggle(folder)
    (folder / "Flickr_8k.trainImages.txt").write_text("c.jpg\nd.jpg\n")
    (folder / "Flickr_8k.testImages.txt").write_text("d.jpg\n")
    assert "d.jpg in train and test" in message(folder)


@pytest.mark.parametrize("format", ["karpathy", "captions_tsv"])
def test_an_image_that_its_rows_put_in_two_splits(folder, format):
    if format == "karpathy":
        image = {"filename": "c.jpg", "sentences": [{"raw": "x"}]}
        rows = {"images": [image | {"split": "train"}, image | {"split": "test"}]}
        (folder / "dataset.json").write_text(json.dumps(rows))
    else:
        lines = ["caption\timage_path\tsplit", "x\tc.jpg\ttrain", "y\tc.jpg\ttest", "z\td.jpg\ttrain"]
        (folder / "captions.tsv").write_text("\n".join(lines))
    assert "c.jpg in train and test" in message(folder)


def test_two_files_of_one_format_are_not_chosen_between(folder):
    write_open_clip(folder)
    (folder / "more.csv").write_text("filepath,title\nImages/c.jpg,x\nImages/d.jpg,y\n")
    assert "more.csv, pairs.csv" in message(folder)
    assert len(load_captions(folder / "more.csv").images) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("captions.txt", "image,caption\nno comma here", "captions.txt, line 2"),
        ("Flickr8k.token.txt", "a.jpg#0 no tab", "line 1"),
        ("dataset.json", "{", "not JSON"),
        ("dataset.json", '{"images": ["c.jpg"]}', "Karpathy"),
        ("pairs.csv", 'filepath,title\nc.jpg,"open', "comma-separated"),
        ("pairs.tsv", "filepath\ttitle\nc.jpg", "line 2"),
        ("dataset.json", '{"images": [{"filename": "c.jpg", "split": "tset", "sentences": [{"raw": "x"}]}]}', "tset"),
        ("captions.tsv", "image_id\tcaption\n1\tx", "image_path"),
        ("train-0.tar", "this is no tar", "broken shard"),
    ],
)
def test_a_file_that_is_not_of_its_format(folder, name, content, said):
    (folder / name).write_text(content)
    assert said in message(folder)


def test_a_file_that_is_not_text(folder):
    (folder / "captions.txt").write_bytes(b"image,caption\nc.jpg,caf\xe9\n")
    assert "UTF-8" in message(folder)


def test_an_unknown_format_names_the_known(folder):
    assert "kaggle" in message(folder, format="flickr")
