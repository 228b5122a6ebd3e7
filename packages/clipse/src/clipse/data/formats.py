"""Caption files as people have them: told apart by name and first line, parsed to rows of (image, captions, split).

A parser yields one `Row` per caption or per image, in the order of the file, and knows nothing of images on disk.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipse.data.errors import DataError

_SPLITS = {
    "train": "train",
    "restval": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class Row:
    """Captions of one image as a file states them; `image` is a path relative to the images, `split` None if unsaid."""

    image: str
    captions: tuple[str, ...]
    split: str | None = None


def parse_kaggle(file: Path) -> Iterator[Row]:
    """Kaggle's `image,caption` with a header; an unquoted caption may itself hold commas."""
    for number, line in enumerate(_lines(file)):
        cells = next(csv.reader([line]))
        if number == 0 and [cell.strip().lower() for cell in cells] == ["image", "caption"]:
            continue
        if len(cells) < 2:
            raise _unreadable(file, number, "image,caption", line)
        quoted = len(cells) == 2
        yield Row(cells[0].strip(), (cells[1] if quoted else line.split(",", 1)[1],))


def parse_token(file: Path) -> Iterator[Row]:
    """The original `name.jpg#k<TAB>caption`."""
    for number, line in enumerate(_lines(file)):
        key, tab, caption = line.partition("\t")
        if not tab:
            raise _unreadable(file, number, "name.jpg#0<TAB>caption", line)
        yield Row(key.rpartition("#")[0] or key, (caption,))


def parse_captions_tsv(file: Path) -> Iterator[Row]:
    """A header of image_id, caption, image_path, split, in any order; split may be missing."""
    for number, cells in _table(file, delimiter="\t", needed=("caption", "image_path")):
        yield Row(cells["image_path"], (cells["caption"],), _split(cells.get("split"), file, number))


def parse_open_clip(file: Path) -> Iterator[Row]:
    """open_clip's CSV or TSV of filepath and title (quoted or tab-separated, as open_clip reads them)."""
    delimiter = "\t" if "\t" in next(_lines(file), "") else ","
    for number, cells in _table(file, delimiter=delimiter, needed=("filepath", "title")):
        yield Row(cells["filepath"], (cells["title"],), _split(cells.get("split"), file, number))


def parse_karpathy(file: Path) -> Iterator[Row]:
    """Karpathy's JSON: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}; `restval` trains."""
    try:
        images = json.loads(file.read_text(encoding="utf-8-sig"))["images"]
        for number, image in enumerate(images):
            name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            captions = tuple(sentence["raw"] for sentence in image["sentences"])
            yield Row(name, captions, _split(image.get("split"), file, number))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not Karpathy's JSON of images, filename, split and sentences ({error!r})") from error


PARSERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "karpathy": parse_karpathy,
    "captions_tsv": parse_captions_tsv,
    "token": parse_token,
    "kaggle": parse_kaggle,
    "open_clip": parse_open_clip,
}
"""Parsers by format, in the order of preference where a folder holds several."""

FORMATS = (*PARSERS, "webdataset")
"""What `data.format` may say besides `auto`."""

NAMES = {
    "karpathy": "dataset.json, dataset_*.json",
    "captions_tsv": "captions.tsv",
    "token": "Flickr8k.token.txt, *.token.txt, results_20130124.token",
    "kaggle": "captions.txt",
    "open_clip": "*.csv or *.tsv with the columns filepath and title",
    "webdataset": "*.tar",
}
"""What each format's file is called, for people and for `detect`."""


def detect(root: Path) -> tuple[str, Path]:
    """The format of a folder or captions file, and the file that holds its captions (the folder itself for shards).

    Raises:
        DataError: Nothing there is known; the line lists what was looked for.
    """
    if root.is_file():
        found = _format_of_file(root)
        if found is None:
            raise DataError(f"{root}: not a captions file of a known format ({_looked_for()})")
        return found, root.parent if found == "webdataset" else root
    candidates = {name: file for file in sorted(root.iterdir()) if file.is_file() and (name := _format_of_file(file))}
    for name in FORMATS:
        if name in candidates:
            return name, root if name == "webdataset" else candidates[name]
    raise DataError(f"{root}: no captions found; looked for {_looked_for()}")


def captions_file(root: Path, format: str) -> Path:
    """The captions file of a stated format."""
    if format not in FORMATS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    if root.is_file():
        return root
    if format == "webdataset":
        return root
    for file in sorted(root.iterdir()):
        if file.is_file() and _format_of_file(file) == format:
            return file
    raise DataError(f"{root}: no {format} captions found; looked for {NAMES[format]}")


def _format_of_file(file: Path) -> str | None:
    name = file.name
    if name == "captions.txt":
        return "kaggle"
    if name == "captions.tsv":
        return "captions_tsv"
    if name.endswith((".token.txt", ".token")):
        return "token"
    if name.startswith("dataset") and name.endswith(".json"):
        return "karpathy"
    if name.endswith(".tar"):
        return "webdataset"
    if name.endswith((".csv", ".tsv")):
        header = next(_lines(file), "")
        columns = {cell.strip().strip('"') for cell in header.replace("\t", ",").split(",")}
        if {"filepath", "title"} <= columns:
            return "open_clip"
        if {"caption", "image_path"} <= columns:
            return "captions_tsv"
    return None


def _looked_for() -> str:
    return "; ".join(NAMES[name] for name in FORMATS)


def _lines(file: Path) -> Iterator[str]:
    """Lines that are not blank, without a byte-order mark or line ends of any system."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    # not splitlines(): a caption may hold a form feed or a Unicode line separator
    yield from (line for line in text.replace("\r\n", "\n").split("\n") if line.strip())


def _table(file: Path, *, delimiter: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    if delimiter == "\t":  # a tab never stands in a caption, so quotes are letters like any other
        reader = csv.DictReader(_lines(file), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(_lines(file), delimiter=delimiter, strict=True)
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{file}: no column {', '.join(missing)}; its header is {', '.join(reader.fieldnames or ())}")
    try:
        for number, cells in enumerate(reader):
            if any(cells.get(name) is None for name in needed):
                raise _unreadable(file, number, delimiter.join(needed), str(list(cells.values())))
            yield number, cells
    except csv.Error as error:
        raise DataError(f"{file}, row {reader.line_num}: {error}") from error


def _split(name: str | None, file: Path, number: int) -> str | None:
    if name is None or not name.strip():
        return None
    known = _SPLITS.get(name.strip().lower())
    if known is None:
        raise DataError(f"{file}, row {number + 1}: unknown split {name!r}; known: {', '.join(_SPLITS)}")
    return known


def _unreadable(file: Path, number: int, expected: str, line: str) -> DataError:
    return DataError(f"{file}, line {number + 1}: expected {expected!r}, got {line[:80]!r}")
