"""Caption files: every format written and read back; what is refused, in one line."""

import csv
import json
from pathlib import Path

import pytest
import toy_captions as toy
from hypothesis import given
from hypothesis import strategies as st
from toy_captions import CAPTIONS, WRITERS, read, refusal

from clip_common.captions import ReadLog, find_caption_files, find_format, find_split, parse_split
from clip_common.captions.tables import parse_table
from clip_common.errors import DataError

folder = toy.folder


@pytest.mark.parametrize("format", WRITERS)
def test_a_format_is_told_from_its_files_and_read_back(folder, format):
    WRITERS[format](folder)
    ((found, (file,)),) = find_caption_files(folder).items()
    assert found == find_format(file) == format
    images = read(folder)
    assert [image.captions for image in images] == list(CAPTIONS.values())
    assert all(image.path.is_file() for image in images)


def test_of_several_formats_karpathys_splits_are_preferred(folder):
    for write in WRITERS.values():
        write(folder)
    assert list(find_caption_files(folder)) == ["karpathy", "captions_tsv", "token", "kaggle", "open_clip"]
    assert {image.split for image in read(folder)} == {"train", "val", "test"}


def test_commas_quotes_byte_order_marks_and_windows_line_ends_in_kaggles_file(folder):
    toy.write_kaggle_unquoted(folder)
    assert [image.captions for image in read(folder)] == list(CAPTIONS.values())


def test_a_quote_that_does_not_enclose_the_whole_caption_is_its_own(folder):
    lines = [
        "image,caption",
        'c.jpg,"Stop", said the "man"',
        'c.jpg,"no" entry',
        'd.jpg,"so, ""quoted"""',
        'd.jpg,half "',
    ]
    (folder / "captions.txt").write_text("\n".join(lines))
    assert [image.captions for image in read(folder)] == [
        ('"Stop", said the "man"', '"no" entry'),
        ('so, "quoted"', 'half "'),
    ]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, None], ids=["minimal", "all", "none"])
@pytest.mark.parametrize(("delimiter", "name"), [("\t", "pairs.tsv"), (",", "pairs.csv")])
def test_tables_are_read_quoted_or_plain(folder, delimiter, name, quoting):
    rows = [("filepath", "title"), *((f"Images/{image}", caption) for image, caption in toy.pairs())]
    if quoting is None:
        rows = [(image, caption.replace(",", "")) for image, caption in rows]
        (folder / name).write_bytes("\r\n".join(delimiter.join(row) for row in rows).encode())
    else:
        with (folder / name).open("w", newline="", encoding="utf-8-sig") as stream:
            csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows(rows)
    expected = [tuple(c.replace(",", "") if quoting is None else c for c in said) for said in CAPTIONS.values()]
    assert [image.captions for image in read(folder)] == expected


def test_a_quoted_caption_of_two_lines_stays_one_caption(folder):
    (folder / "pairs.csv").write_text('filepath,title\nImages/c.jpg,"one\n\ntwo"\nImages/d.jpg,three\n')
    assert [image.captions for image in read(folder)] == [("one\n\ntwo",), ("three",)]


words = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), min_size=1)


@given(st.lists(st.tuples(st.from_regex(r"[\w ,]{1,9}\.jpg", fullmatch=True), words.filter(str.strip)), min_size=1))
def test_whatever_a_csv_writer_writes_is_read_back(rows):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "captions.txt")
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("image", "caption"), *rows])
        found = [(row.image, row.captions[0]) for row in parse_table(file, ReadLog())]
    assert found == [(name.strip(), caption) for name, caption in rows]


def test_karpathys_splits_with_restval_in_training(folder):
    toy.write_karpathy(folder)
    assert [image.split for image in read(folder)] == ["train", "train", "val", "test"]


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
        assert [row.captions[0] for row in parse_table(file, ReadLog())] == captions


def test_the_lemmas_beside_the_original_captions_are_not_taken_for_them(folder):
    toy.write_token(folder)
    (folder / "Flickr8k.lemma.token.txt").write_text("c.jpg#0\tlemma\nd.jpg#0\tlemma\n")
    assert len(read(folder)) == len(CAPTIONS)


def test_an_image_in_two_splits(folder):
    toy.write_kaggle(folder)
    (folder / "Flickr_8k.trainImages.txt").write_text("c.jpg\nd.jpg\n")
    (folder / "Flickr_8k.testImages.txt").write_text("d.jpg\n")
    assert "d.jpg in train and test" in refusal(folder)


@pytest.mark.parametrize("format", ["karpathy", "captions_tsv"])
def test_an_image_that_its_rows_put_in_two_splits(folder, format):
    if format == "karpathy":
        image = {"filename": "c.jpg", "sentences": [{"raw": "x"}]}
        rows = {"images": [image | {"split": "train"}, image | {"split": "test"}]}
        (folder / "dataset.json").write_text(json.dumps(rows))
    else:
        lines = ["caption\timage_path\tsplit", "x\tc.jpg\ttrain", "y\tc.jpg\ttest", "z\td.jpg\ttrain"]
        (folder / "captions.tsv").write_text("\n".join(lines))
    assert "c.jpg in train and test" in refusal(folder)


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
    ],
)
def test_a_file_that_is_not_of_its_format(folder, name, content, said):
    (folder / name).write_text(content)
    assert said in refusal(folder)


def test_a_file_that_is_not_text(folder):
    (folder / "captions.txt").write_bytes(b"image,caption\nc.jpg,caf\xe9\n")
    assert "UTF-8" in refusal(folder)


def test_split_lists_that_name_none_of_the_images(folder):
    toy.write_kaggle(folder)
    (folder / "Flickr_8k.trainImages.txt").write_text("other.jpg\n")
    assert "the split lists name none of the 4 captioned images" in refusal(folder)


def test_splits_by_their_names():
    assert [parse_split(name, at="here") for name in ("Validation", "restval", " ", None)] == [
        "val",
        "train",
        None,
        None,
    ]
    with pytest.raises(DataError, match=r"here: unknown split 'tset'; known: train"):
        parse_split("tset", at="here")
    assert find_split(["data", "train-00000-of-00002.parquet"]) == "train"
    assert find_split(["Validation", "train.jpg"]) == "val"
    assert find_split(["a.parquet"]) is None
