"""Formats of caption files of images: detection by name and first line, and parsers to `Row`s.

A parser yields one `Row` per caption or per image, in the order of the file, without looking at images on disk.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_common.captions.splits import parse_split
from clip_common.errors import DataError
from clip_common.tables import read_json, read_lines, read_table


@dataclass(frozen=True, slots=True)
class Row:
    """Captions of one image in a file; `image` is a path relative to the images, `split` is None if not stated."""

    image: str
    captions: tuple[str, ...]
    split: str | None = None


def parse_kaggle(file: Path) -> Iterator[Row]:
    """Parse Kaggle's `image,caption` with a header; a caption may be quoted, or contain commas and quotes unquoted."""
    for order, (number, line) in enumerate(read_lines(file)):
        cells = _KAGGLE_LINE.fullmatch(line)
        if cells is None:
            raise _unreadable(file, number, "image,caption", line)
        image, caption = (_unquoted(cell) for cell in cells.groups())
        if order > 0 or (image.strip().lower(), caption.strip().lower()) != ("image", "caption"):
            yield Row(image.strip(), (caption,))


def parse_token(file: Path) -> Iterator[Row]:
    """Parse the original `name.jpg#k<TAB>caption`."""
    for number, line in read_lines(file):
        key, tab, caption = line.partition("\t")
        if not tab:
            raise _unreadable(file, number, "name.jpg#0<TAB>caption", line)
        yield Row(key.rpartition("#")[0] or key, (caption,))


def parse_captions_tsv(file: Path) -> Iterator[Row]:
    """Parse a table with the columns image_id, caption, image_path, split, in any order; split may be missing."""
    for number, cells in read_table(file, needed=("caption", "image_path")):
        yield Row(
            cells["image_path"], (cells["caption"],), parse_split(cells.get("split"), at=f"{file}, line {number}")
        )


def parse_open_clip(file: Path) -> Iterator[Row]:
    """Parse open_clip's CSV or TSV with the columns filepath and title."""
    for number, cells in read_table(file, needed=("filepath", "title")):
        yield Row(cells["filepath"], (cells["title"],), parse_split(cells.get("split"), at=f"{file}, line {number}"))


def parse_karpathy(file: Path) -> Iterator[Row]:
    """Parse Karpathy's JSON: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}.

    The split `restval` is used for training.
    """
    content = read_json(file)
    try:
        for image in content["images"]:
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            sentences = image["sentences"]
            captions = tuple(parse_caption(sentence["raw"], sample=f"{file}: {name}") for sentence in sentences)
            yield Row(name, captions, parse_split(image.get("split"), at=f"{file}: {name}"))
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not Karpathy's JSON of images, filename, split and sentences ({error!r})") from error


def parse_caption(value: Any, *, sample: str) -> str:
    """Return a caption from JSON, where null is an empty caption.

    Raises:
        DataError: Neither text nor null.
    """
    if not isinstance(value, str | None):
        raise DataError(f"{sample}: expected a caption as text, got {value!r:.80}: write it in quotes, or remove it")
    return value or ""


PARSERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "karpathy": parse_karpathy,
    "captions_tsv": parse_captions_tsv,
    "token": parse_token,
    "kaggle": parse_kaggle,
    "open_clip": parse_open_clip,
}
"""Format → parser, in the order of preference for a folder with several."""

NAMES = {
    "karpathy": "dataset.json, dataset_*.json",
    "captions_tsv": "captions.tsv",
    "token": "Flickr8k.token.txt, *.token.txt, results_20130124.token",
    "kaggle": "captions.txt",
    "open_clip": "*.csv or *.tsv with the columns filepath and title",
}
"""Format → names of its files, for messages."""


def find_format(file: Path) -> str | None:
    """Return the format of a file by its name, or by the header of a table; None if it is none of them.

    Raises:
        DataError: A CSV or TSV file that cannot be read.
    """
    name = file.name
    if name == "captions.txt":
        return "kaggle"
    if name == "captions.tsv":
        return "captions_tsv"
    if name.endswith((".token.txt", ".token")) and ".lemma." not in name:
        return "token"
    if name.startswith("dataset") and name.endswith(".json"):
        return "karpathy"
    if name.endswith((".csv", ".tsv")):
        _, header = next(read_lines(file), (1, ""))
        columns = {cell.strip().strip('"') for cell in header.replace("\t", ",").split(",")}
        if {"filepath", "title"} <= columns:
            return "open_clip"
        if {"caption", "image_path"} <= columns:
            return "captions_tsv"
    return None


def find_caption_files(folder: Path) -> dict[str, list[Path]]:
    """Return the caption files directly in a folder by format, in the order of preference, sorted by name.

    Raises:
        DataError: As `find_format`.
    """
    found: dict[str, list[Path]] = {format: [] for format in PARSERS}
    for file in sorted(folder.iterdir()):
        format = find_format(file) if file.is_file() else None
        if format is not None:
            found[format].append(file)
    return {format: files for format, files in found.items() if files}


def choose_file(files: Sequence[Path], root: Path, *, format: str) -> Path:
    """Return the one file of a format in a folder.

    Raises:
        DataError: Several files.
    """
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{root}: several files of the format {format} ({names}): name one, data.root={files[0]}")
    return files[0]


_QUOTED = r'"(?:[^"]|"")*"'
_KAGGLE_LINE = re.compile(rf"({_QUOTED}|[^,]*),(.*)")


def _unquoted(cell: str) -> str:
    """Remove the quotes that a CSV writer put around a cell; other quotes belong to the caption."""
    return cell.strip()[1:-1].replace('""', '"') if re.fullmatch(_QUOTED, cell.strip()) else cell


def _unreadable(file: Path, number: int, expected: str, line: str) -> DataError:
    return DataError(f"{file}, line {number}: expected {expected!r}, got {line[:80]!r}")
