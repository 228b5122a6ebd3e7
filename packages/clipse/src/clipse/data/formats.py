"""Caption files as people have them: told apart by name and first line, parsed to rows of (image, captions, split).

A parser yields one `Row` per caption or per image, in the order of the file, and knows nothing of images on disk.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_common.errors import DataError

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
    """Kaggle's `image,caption` with a header; a caption may be quoted, or hold commas and quotes as they are."""
    for number, line in enumerate(_lines(file)):
        cells = _KAGGLE_LINE.fullmatch(line)
        if cells is None:
            raise _unreadable(file, number, "image,caption", line)
        image, caption = (_unquoted(cell) for cell in cells.groups())
        if number > 0 or (image.strip().lower(), caption.strip().lower()) != ("image", "caption"):
            yield Row(image.strip(), (caption,))


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
            sentences = image["sentences"]
            captions = tuple(caption_of(sentence["raw"], sample=f"{file}: {name}") for sentence in sentences)
            yield Row(name, captions, _split(image.get("split"), file, number))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not Karpathy's JSON of images, filename, split and sentences ({error!r})") from error


def caption_of(value: Any, *, sample: str) -> str:
    """A caption out of JSON, where null is an empty one.

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
    candidates = _candidates(root)
    for name in FORMATS:
        if name in candidates:
            return name, _only(candidates[name], root, name)
    if any(root.glob("*/*.tar")):
        return "webdataset", root
    raise DataError(f"{root}: no captions found; looked for {_looked_for()}")


def captions_file(root: Path, format: str) -> Path:
    """The captions file of a stated format."""
    if format not in FORMATS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    if root.is_file() or format == "webdataset":
        return root
    files = _candidates(root).get(format)
    if files is None:
        raise DataError(f"{root}: no {format} captions found; looked for {NAMES[format]}")
    return _only(files, root, format)


def _candidates(root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in sorted(root.iterdir()):
        name = _format_of_file(file) if file.is_file() else None
        if name is not None:
            found.setdefault(name, []).append(file)
    return found


def _only(files: list[Path], root: Path, format: str) -> Path:
    if format == "webdataset":
        return root
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{root}: several files of the format {format} ({names}): name one, data.root={files[0]}")
    return files[0]


def _format_of_file(file: Path) -> str | None:
    name = file.name
    if name == "captions.txt":
        return "kaggle"
    if name == "captions.tsv":
        return "captions_tsv"
    if name.endswith((".token.txt", ".token")) and ".lemma." not in name:
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


def _text(file: Path) -> str:
    """The whole file without a byte-order mark, its lines ended as on Unix."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _lines(file: Path) -> Iterator[str]:
    """Lines that are not blank."""
    # not splitlines(): a caption may hold a form feed or a Unicode line separator
    yield from (line for line in _text(file).split("\n") if line.strip())


_QUOTED = r'"(?:[^"]|"")*"'
_KAGGLE_LINE = re.compile(rf"({_QUOTED}|[^,]*),(.*)")


def _unquoted(cell: str) -> str:
    """A cell without the quotes that a CSV writer put around it; any other quote is the caption's own."""
    return cell.strip()[1:-1].replace('""', '"') if re.fullmatch(_QUOTED, cell.strip()) else cell


def _table(file: Path, *, delimiter: str, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    reader: Iterator[list[str]]
    if delimiter == "\t":  # a tab never stands in a caption, so a row is a line, and quotes in it may be letters
        reader = ([_unquoted(cell) for cell in line.split("\t")] for line in _lines(file))
    else:
        reader = (cells for cells in csv.reader(io.StringIO(_text(file)), strict=True) if cells)
    try:
        header = next(reader, [])
        missing = [name for name in needed if name not in header]
        if missing:
            raise DataError(f"{file}: no column {', '.join(missing)}; its header is {', '.join(header)}")
        for number, cells in enumerate(reader, start=1):
            row = dict(zip(header, cells, strict=False))
            if any(name not in row for name in needed):
                raise _unreadable(file, number, delimiter.join(header), delimiter.join(cells))
            yield number, row
    except csv.Error as error:
        raise DataError(f"{file}: not a table of comma-separated values ({error})") from error


def _split(name: str | None, file: Path, number: int) -> str | None:
    if name is None or not name.strip():
        return None
    known = _SPLITS.get(name.strip().lower())
    if known is None:
        raise DataError(f"{file}, row {number + 1}: unknown split {name!r}; known: {', '.join(_SPLITS)}")
    return known


def _unreadable(file: Path, number: int, expected: str, line: str) -> DataError:
    return DataError(f"{file}, line {number + 1}: expected {expected!r}, got {line[:80]!r}")
