"""Four captioned images, written in every format of caption files."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from clip_common.captions import (
    CaptionedImage,
    ReadLog,
    check_none,
    choose_files,
    find_caption_files,
    read_caption_files,
)
from clip_common.errors import DataError

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


WRITERS = {
    "kaggle": write_kaggle,
    "token": write_token,
    "captions_tsv": write_tsv,
    "karpathy": write_karpathy,
    "open_clip": write_open_clip,
}


def read(folder: Path) -> list[CaptionedImage]:
    """The images of the preferred caption file of a folder."""
    format, files = next(iter(find_caption_files(folder).items()))
    log = ReadLog()
    images = read_caption_files(choose_files(files, folder, format=format), format=format, log=log)
    check_none(log.problems, advice="correct them")
    return images


def refusal(folder: Path) -> str:
    """What `read` says about a folder that it refuses."""
    with pytest.raises(DataError) as error:
        read(folder)
    text = str(error.value)
    assert "\n" not in text
    return text
