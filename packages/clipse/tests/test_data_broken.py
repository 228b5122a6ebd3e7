"""Twelve broken sets: `data check` names every fault of every kind with its line; `on_error=skip` loses no more."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_captions as toy
import toy_shards
from toy_formats import Piece, write_datasets

from clipse.data import check, load_captions

folder = toy.folder
add = toy_shards.add
jpeg = toy.jpeg

Broken = Callable[[Path], dict[str, str]]
"""Writes a broken set into a folder with the four images; returns the start of a line → what it says."""

GOOD = ["zwölf.jpg,one", "c.jpg,two"]


def lines(file: Path, *rows: str | bytes) -> None:
    file.write_bytes(b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows))


def kaggle_rows(folder: Path) -> dict[str, str]:
    """Every fault that a row can have, beside two good ones."""
    Path(folder, "Images", "d.jpg").write_bytes(jpeg()[:300])
    lines(
        folder / "captions.txt",
        *("image,caption", *GOOD, "no comma", "c.jpg,  ", b"c.jpg,caf\xe9", "/tmp/x.jpg,absolute"),
        *("../Images/c.jpg,climbs", "gone.jpg,absent", ",no image", "d.jpg,broken"),
    )
    return {
        "captions.txt, line 4": "got 1 in 'no comma'",
        "captions.txt, line 5": "c.jpg: an empty caption",
        "captions.txt, line 6": "not UTF-8 text",
        "captions.txt, line 7": "leaves the folder",
        "captions.txt, line 8": "leaves the folder",
        "captions.txt, line 9": "gone.jpg: no such image",
        "captions.txt, line 10": "expected the path of an image",
        "captions.txt, line 11": "d.jpg",
    }


def unknown_header(folder: Path) -> dict[str, str]:
    lines(folder / "captions.txt", "photo,number,words", "c.jpg,0,plain", "d.jpg,0,more")
    return {"captions.txt, line 1": "got 'photo,number,words'", "": "0 usable image(s)"}


def splits_of_rows(folder: Path) -> dict[str, str]:
    lines(
        folder / "captions.tsv",
        "caption\timage_path\tsplit",
        *("one\tzwölf.jpg\ttrain", "two\tc.jpg\ttrain", "three\td.jpg\ttset"),
        *("four\tein hund.jpg\ttrain", "five\tein hund.jpg\ttest", "six\tc.jpg"),
    )
    return {
        "captions.tsv, line 4": "unknown split 'tset'",
        "captions.tsv, line 6": "ein hund.jpg in train and test",
        "captions.tsv, line 7": "expected 3 cells",
    }


def split_lists(folder: Path) -> dict[str, str]:
    toy.write_kaggle(folder)
    lines(folder / "Flickr_8k.trainImages.txt", "c.jpg", "zwölf.jpg", "d.jpg")
    lines(folder / "Flickr_8k.testImages.txt", "ein hund.jpg", "", "d.jpg")
    return {"Flickr_8k.testImages.txt, line 3": "d.jpg in train and test"}


def open_quote(folder: Path) -> dict[str, str]:
    rows = ('Images/d.jpg,"never closed', 'Images/ein hund.jpg,"closed"', *(f"Images/{row}" for row in GOOD))
    lines(folder / "pairs.csv", "filepath,title", *rows)
    return {"pairs.csv, line 2": "a quote is never closed"}


def flickr30k(folder: Path) -> dict[str, str]:
    rows = ("zwölf.jpg| 0| one", "c.jpg; 4; two dogs", "c.jpg| 1| two", "c.jpg| 2| ")
    lines(folder / "results.csv", "image_name| comment_number| comment", *rows)
    return {"results.csv, line 3": "expected 3 cells", "results.csv, line 5": "c.jpg: an empty caption"}


def token(folder: Path) -> dict[str, str]:
    rows = ("zwölf.jpg#0\tone", "c.jpg#0 no tab", "c.jpg#1\ttwo", "d.jpg.1#0\tthree")
    lines(folder / "Flickr8k.token.txt", *rows)
    return {"Flickr8k.token.txt, line 2": "<TAB>", "Flickr8k.token.txt, line 4": "d.jpg.1: no such image"}


def karpathy(folder: Path) -> dict[str, str]:
    image = '{"filename": "%s", "split": "%s", "sentences": [{"raw": %s}]}'
    entries = [
        image % ("c.jpg", "train", '"one"'),
        image % ("zwölf.jpg", "train", '"two"'),
        image % ("d.jpg", "tset", '"three"'),
        image % ("ein hund.jpg", "train", "5"),
        '{"filename": "c.jpg"}',
    ]
    lines(folder / "dataset.json", '{"images": [', *(f"{entry}," for entry in entries[:-1]), entries[-1], "]}")
    return {
        "dataset.json, line 4": "unknown split 'tset'",
        "dataset.json, line 5": "expected a caption as text, got 5",
        "dataset.json, line 6": "not Karpathy's JSON",
    }


def coco(folder: Path) -> dict[str, str]:
    names = [*toy.CAPTIONS, "gone.jpg"]
    images = [json.dumps({"id": number, "file_name": name}) for number, name in enumerate(names)]
    said = [(0, "one"), (1, "two"), (4, "three"), (9, "four"), (2, None), (2, "five")]
    annotations = [json.dumps({"image_id": image, "caption": text}) for image, text in said]
    lines(
        folder / "captions_all.json",
        '{"images": [',
        *",\n".join(images).split("\n"),
        '], "annotations": [',
        *",\n".join(annotations).split("\n"),
        "]}",
    )
    return {
        "captions_all.json, line 5": "d.jpg: no caption",
        "captions_all.json, line 10": "gone.jpg: no such image",
        "captions_all.json, line 11": "image_id 9 is not among the images",
        "captions_all.json, line 12": "c.jpg: an empty caption",
    }


def json_lines(folder: Path) -> dict[str, str]:
    for name in toy.CAPTIONS:
        (folder / name).write_bytes(jpeg())
    rows = ('{"file_name": "c.jpg", "text": "one"}', '{"file_name": "d.jpg", "text": "two"}', '{"file_name": "c.jpg"')
    more = ('{"file_name": "c.jpg", "txet": "three"}', '{"file_name": 3, "text": "four"}', "[]")
    lines(folder / "metadata.jsonl", *rows, *more)
    return {
        "metadata.jsonl, line 3": "not JSON",
        "metadata.jsonl, line 4": "no column for the caption, got 'file_name,txet'",
        "metadata.jsonl, line 5": "expected the path of an image, got 3",
        "metadata.jsonl, line 6": "expected a JSON object",
    }


def shards(folder: Path) -> dict[str, str]:
    with tarfile.open(folder / "train-0.tar", "w") as archive:
        for key, texts in {
            "a": {"txt": b"one"},
            "b": {"json": b'{"caption": "two"}'},
            "c": {"json": b'{"url": "nothing else"}'},
            "d": {"txt": b"caf\xe9"},
            "e": {"json": b'{"caption"'},
            "f": {"json": b'{"caption": 5}'},
            "g": {},
        }.items():
            add(archive, f"{key}.jpg", jpeg())
            for extension, text in texts.items():
                add(archive, f"{key}.{extension}", text)
        add(archive, "h.txt", b"no image")
        add(archive, "i.jpg", jpeg()[:300])
        add(archive, "i.txt", b"broken")
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for key in "xyz":
            add(archive, f"{key}.jpg", jpeg())
            add(archive, f"{key}.txt", b"last")
    (folder / "train-1.tar").write_bytes(whole.getvalue()[:2100])
    return {
        "train-0.tar: sample c": "no column for the caption",
        "train-0.tar: sample d": "utf-8",
        "train-0.tar: sample e": "Expecting",
        "train-0.tar: sample f": "expected a caption as text, got 5",
        "train-0.tar: sample g": "no captions",
        "train-0.tar: sample h": "expected one image, got none",
        "train-0.tar: train-0.tar/i.jpg": "",
        "train-1.tar: broken shard": "",
    }


def pictures_beside_texts(folder: Path) -> dict[str, str]:
    for name in ("c", "d", "zwölf"):
        (folder / "Images" / f"{name}.txt").write_text("a line\nanother")
    (folder / "Images" / "d.txt").write_bytes(b"caf\xe9")
    (folder / "Images" / "alone.txt").write_text("no picture")
    (folder / "Images" / "c.jpg").write_bytes(b"<html>")
    (folder / "Images" / "e.jpg").write_bytes(jpeg())
    (folder / "Images" / "e.txt").write_text("")
    (folder / "Images" / "f.jpg").write_bytes(jpeg())
    (folder / "Images" / "f.txt").write_text("good")
    return {
        "Images/c.txt, line 1": "c.jpg",
        "Images/d.txt": "not UTF-8",
        "Images/e.txt": "an empty caption",
        "Images/ein hund.jpg": "no captions",
        "Images/alone.txt": "no picture",
    }


SETS: dict[Broken, int] = {
    kaggle_rows: 2,
    unknown_header: 0,
    splits_of_rows: 2,
    split_lists: 3,
    open_quote: 3,
    flickr30k: 2,
    token: 2,
    karpathy: 2,
    coco: 3,
    json_lines: 2,
    shards: 3,
    pictures_beside_texts: 2,
}
"""Broken set → number of images that are left."""


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_check_names_every_fault_with_its_line_and_skip_loses_no_more(make, folder, clipse):
    expected = make(folder)
    found = [str(problem).replace(f"{folder}/", "") for problem in check(folder).problems]
    for place, said in expected.items():
        named = [line for line in found if line.startswith(f"{place}: " if "line" in place else place) and said in line]
        assert named, f"{place}: {said} is not among {found}"
    assert len(found) == len(expected), found
    code, out, error = clipse("data", "check", folder)
    assert code == 2
    assert f"{len(expected)} problem(s)" in error
    assert all(line in out.replace(f"{folder}/", "") for line in found)
    if SETS[make]:
        assert len(load_captions(folder, on_error="skip").images) == SETS[make]


def test_twelve_sets():
    assert len(SETS) == 12


def test_a_compressed_shard_that_breaks_off_keeps_the_samples_before(folder, tmp_path, monkeypatch):
    toy_shards.write_shards(folder)
    for shard in sorted(folder.glob("*.tar")):
        content = gzip.compress(shard.read_bytes())
        (folder / f"{shard.name}.gz").write_bytes(content[:-9] if "train" in shard.name else content)
        shard.unlink()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # unpacked, then read from the cache
        said = [str(problem) for problem in check(folder).problems]
        assert len(said) == 1
        assert "train-0.tar.gz: broken gzip" in said[0]
        assert len(load_captions(folder, on_error="skip").images) == 4
    assert len(list((tmp_path / "runs" / "cache" / "shards").iterdir())) == 3


def test_a_second_member_of_a_key_is_left_out_and_named(folder):
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name, content in (("a.jpg", jpeg()), ("a.txt", b"one"), ("b.jpg", jpeg()), ("b.txt", b"two")):
            add(archive, name, content)
        add(archive, "a.txt", b"three")
    (problem,) = check(folder).problems
    assert str(problem).startswith(f"{folder / 'train.tar'}: sample a: a second .txt, left out")
    assert [record.captions for record in load_captions(folder, on_error="skip").images] == [("one",), ("two",)]


def test_a_key_with_several_images_and_no_plain_one_is_read_from_its_input(folder):
    with tarfile.open(folder / "train.tar", "w") as archive:
        for key in "ab":
            add(archive, f"{key}.input.jpg", jpeg(1))
            add(archive, f"{key}.target.jpg", jpeg(2))
            add(archive, f"{key}.txt", key.encode())
        for extension, content in {"left.jpg": jpeg(), "right.jpg": jpeg(), "txt": b"c"}.items():
            add(archive, f"c.{extension}", content)
    assert [str(problem).rpartition(": ")[2] for problem in check(folder).problems] == [
        "expected one image, got left.jpg, right.jpg"
    ]
    assert [record.read() for record in load_captions(folder, on_error="skip").images] == [jpeg(1), jpeg(1)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "dataset_dict.json").write_text("{"), "dataset_dict.json: expected the names of splits"),
        (lambda root: (root / "val" / "state.json").write_text("{}"), "state.json: not a readable split"),
        (
            lambda root: cut(root / "val" / "data-00000-of-00001.arrow"),
            "data-00000-of-00001.arrow: not a readable Arrow",
        ),
        (lambda root: (root / "val").rename(root / "gone"), "val/state.json: not a readable split"),
    ],
    ids=["names", "state", "arrow", "gone"],
)
def test_a_damaged_datasets_folder(tmp_path, damage, said):
    root = tmp_path / "set"
    root.mkdir()
    write_datasets(root, [Piece(f"{n}.jpg", ("train", "val")[n % 2], ("said",), jpeg(n)) for n in range(6)])
    damage(root)
    problems = [str(problem) for problem in check(root).problems]
    assert any(said in problem for problem in problems), problems


def test_a_datasets_folder_without_captions_shows_its_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"image": ["c.jpg"], "label": [1]}).save_to_disk(str(tmp_path / "set"))
    assert "got 'image,label'" in str(check(tmp_path / "set").problems[0])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def test_options_of_the_command_name_files_and_columns(folder, clipse):
    lines(folder / "a.csv", "photo,words", "c.jpg,one")
    lines(folder / "b.csv", "photo,words", "d.jpg,two")
    code, _, error = clipse("data", "check", folder)
    assert code == 2
    assert "a.csv has the columns 'photo,words'; b.csv has the columns 'photo,words'" in error
    options = ["--files", "a.csv", "--files", "b.csv", "--columns", "image=photo", "--columns", "caption=words"]
    code, out, _ = clipse("data", "check", folder, *options)
    assert code == 0
    assert f"a.csv: images in {folder / 'Images'}, relative to the folder of the file" in out
    assert "a.csv: image from column photo; caption from column words" in out
    assert clipse("data", "stats", folder, *options)[0] == 0
    assert "expected ROLE=NAME" in clipse("data", "check", folder, "--columns", "photo")[2]


def test_files_of_two_formats_are_not_read_together(folder):
    toy.write_token(folder)
    toy.write_open_clip(folder)
    assert "files that are read together have one format" in toy_shards.message(
        folder, files=["Flickr8k.token.txt", "pairs.csv"]
    )
    assert "no such captions file" in toy_shards.message(folder, files=["nowhere.csv"])


@pytest.mark.parametrize("name", ["metadata.parquet", "state.json"])
def test_without_pyarrow_the_message_says_what_to_install(folder, name, monkeypatch):
    (folder / name).write_bytes(b"{}")
    monkeypatch.setattr("clip_common.errors.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r'needs pyarrow: pip install "pyarrow>=20.0"'):
        check(folder)
