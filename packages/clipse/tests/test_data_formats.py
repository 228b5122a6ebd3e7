"""Each format: a folder is written by hand and read back. Splits are by image. Every mistake is one line."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipse.data import DataError, check, hold_out, load_captions, stats
from clipse.data.formats import parse_kaggle
from clipse.data.splits import draw_splits

CAPTIONS = {
    "ein hund.jpg": ("a dog, a cat and a bird", 'a "quoted" dog'),
    "zwölf.jpg": ("zwölf Boxkämpfer", "犬が走る"),
    "c.jpg": ("plain", "simple"),
    "d.jpg": ("one more", "and another"),
}


def jpeg(colour: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (colour, 90, 30)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "Images").mkdir()
    for number, name in enumerate(CAPTIONS):
        (tmp_path / "Images" / name).write_bytes(jpeg(40 * number))
    return tmp_path


def pairs() -> list[tuple[str, str]]:
    return [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def write_kaggle(folder: Path) -> None:
    with (folder / "captions.txt").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "caption"), *pairs()])


def write_kaggle_unquoted(folder: Path) -> None:
    lines = ["image,caption", *(f"{name},{caption}" for name, caption in pairs())]
    (folder / "captions.txt").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())


def write_token(folder: Path) -> None:
    lines = (f"{name}#{k}\t{caption}" for name, captions in CAPTIONS.items() for k, caption in enumerate(captions))
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines), encoding="utf-8")


def write_tsv(folder: Path) -> None:
    lines = ["image_id\tcaption\timage_path", *(f"{name}\t{text}\tImages/{name}" for name, text in pairs())]
    (folder / "captions.tsv").write_text("\n".join(lines), encoding="utf-8")


def write_karpathy(folder: Path, splits: tuple[str, ...] = ("train", "restval", "val", "test")) -> None:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions]}
        for (name, captions), split in zip(CAPTIONS.items(), splits, strict=True)
    ]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images}), encoding="utf-8")


def write_open_clip(folder: Path) -> None:
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("filepath", "title"), *((f"Images/{n}", c) for n, c in pairs())])


def write_shards(folder: Path) -> None:
    names = list(CAPTIONS)
    for shard, members in (("train-0.tar", names[:2]), ("val-0.tar", names[2:3]), ("test-0.tar", names[3:])):
        with tarfile.open(folder / shard, "w") as archive:
            for number, name in enumerate(members):
                stem = name.removesuffix(".jpg")
                texts = "\n".join(CAPTIONS[name]) if number else json.dumps({"captions": CAPTIONS[name]})
                contents = {f"{stem}.jpg": jpeg(), f"{stem}.{'txt' if number else 'json'}": texts.encode()}
                for member, content in contents.items():
                    add(archive, member, content)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


WRITERS = {
    "kaggle": write_kaggle,
    "token": write_token,
    "captions_tsv": write_tsv,
    "karpathy": write_karpathy,
    "open_clip": write_open_clip,
    "webdataset": write_shards,
}


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


def message(root: Path, **options: str) -> str:
    with pytest.raises(DataError) as error:
        load_captions(root, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


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
    assert "c.jpg" in report.problems[0]
    assert load_captions(folder, on_error="skip").skipped == 1


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


def test_a_set_of_one_image(folder):
    (folder / "captions.txt").write_text("image,caption\nc.jpg,plain\n")
    assert "1 usable image" in message(folder)


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


@pytest.mark.real
def test_the_real_captions_load():
    root = Path(os.environ.get("CLIP_REAL_DATA", Path(__file__).resolve().parents[4] / "shared" / "assets" / "data"))
    if not (root / "captions").exists():
        pytest.skip(f"{root / 'captions'} is absent: set CLIP_REAL_DATA to the folder that holds it")
    data = load_captions(root / "captions")
    assert data.format == "karpathy"
    assert [len(data.split(split)) for split in ("train", "val", "test")] == [600, 0, 201]
    assert check(root / "captions").ok
