"""Formats of caption files of images: detection by name and content, and a parser to `Row`s for each.

A parser yields one `Row` per caption or per image, in the order of the file, without looking at images on disk.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clip_common.captions.columns import Row, find_columns
from clip_common.captions.json_files import (
    parse_coco,
    parse_json_lines,
    parse_karpathy,
    parse_lavis,
    parse_parquet,
)
from clip_common.captions.problems import ReadLog
from clip_common.captions.splits import find_file_split, find_split
from clip_common.captions.tables import parse_table, parse_token, read_header
from clip_common.errors import DataError, check_list

Parser = Callable[[Path, ReadLog], Iterator[Row]]


def parse_imagefolder(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse the metadata.jsonl, metadata.csv or metadata.parquet of a Hugging Face imagefolder."""
    return {".jsonl": parse_json_lines, ".parquet": parse_parquet}.get(file.suffix.lower(), parse_table)(file, log)


PARSERS: dict[str, Parser] = {
    "karpathy": parse_karpathy,
    "coco": parse_coco,
    "lavis": parse_lavis,
    "captions_tsv": parse_table,
    "token": parse_token,
    "kaggle": parse_table,
    "flickr30k": parse_table,
    "open_clip": parse_table,
    "imagefolder": parse_imagefolder,
    "table": parse_table,
}
"""Format → parser, in the order of preference for a folder with several."""

NAMES = {
    "karpathy": "dataset.json, dataset_*.json",
    "coco": "COCO's captions_*.json",
    "lavis": "JSON lists of image and caption",
    "captions_tsv": "captions.tsv",
    "token": "Flickr8k.token.txt, *.token.txt, results_20130124.token",
    "kaggle": "captions.txt",
    "flickr30k": "results.csv",
    "open_clip": "*.csv or *.tsv with the columns filepath and title",
    "imagefolder": "metadata.jsonl, metadata.csv, metadata.parquet",
    "table": "*.csv, *.tsv or captions*.txt with columns of images and captions",
}
"""Format → names of its files, for messages."""

_HEAD = 1 << 16
"""Bytes of a file's beginning and of its end that are enough to tell its format."""


def find_format(file: Path, log: ReadLog | None = None) -> str | None:
    """Return the format of a file by its name, by the header of a table or the keys of JSON; None if it is none.

    Args:
        file: An existing file.
        log: Its columns count as known.

    Raises:
        DataError: A file that cannot be read.
    """
    name, suffix = file.name.lower(), file.suffix.lower()
    if name.endswith((".token.txt", ".token")) and ".lemma." not in name:
        return "token"
    if suffix == ".json":
        return _find_json_format(file)
    if name in ("metadata.csv", "metadata.jsonl", "metadata.parquet"):
        return "imagefolder" if suffix != ".jsonl" or '"file_name"' in _read_head(file) else None
    if suffix not in (".csv", ".tsv") and not (suffix == ".txt" and name.startswith(("captions", "results"))):
        return None
    line = next((line for line in _read_head(file).splitlines() if line.strip()), "")
    if name == "captions.txt":
        return "token" if "#" in line.partition("\t")[0] and "\t" in line else "kaggle"
    if name == "captions.tsv":
        return "captions_tsv"
    if name == "results.csv" and "|" in line:
        return "flickr30k"
    header = {cell.lower() for cell in read_header(line)}
    if suffix != ".txt" and {"filepath", "title"} <= header:
        return "open_clip"
    if suffix != ".txt" and {"caption", "image_path"} <= header:
        return "captions_tsv"
    try:
        find_columns(read_header(line), log or ReadLog())
    except DataError:
        return None
    return "table"


def find_caption_files(root: Path, log: ReadLog | None = None) -> dict[str, list[Path]]:
    """Return the caption files of a folder by format, in the order of preference, sorted by path.

    They are in the folder, in its folder `annotations`, or, as the metadata of imagefolders, in folders of splits.

    Raises:
        DataError: As `find_format`.
    """
    found: dict[str, list[Path]] = {format: [] for format in PARSERS}
    below = [place for place in sorted(root.iterdir()) if place.is_dir()]
    files = [file for file in sorted(root.iterdir()) if file.is_file()]
    files += [file for place in below if place.name == "annotations" for file in sorted(place.iterdir())]
    files += [file for place in below if find_split([place.name]) for file in sorted(place.glob("metadata.*"))]
    for file in files:
        format = find_format(file, log) if file.is_file() else None
        if format is not None:
            found[format].append(file)
    return {format: files for format, files in found.items() if files}


def choose_files(files: Sequence[Path], root: Path, *, format: str) -> list[Path]:
    """Return the files of a format to read together: the only one, or one for each split.

    Raises:
        DataError: Several files, whose names do not state a split each.
    """
    check_list(files, "files")
    splits = [find_file_split(file) for file in files]
    if len(files) > 1 and not all(splits):
        names = ", ".join(str(file.relative_to(root)) for file in files)
        raise DataError(f"{root}: several files of the format {format} ({names}): name one, data.root={files[0]}")
    return list(files)


def list_headers(root: Path) -> list[str]:
    """Return one line for each table directly in a folder, with its header, for a message that none has captions."""
    tables = [file for file in sorted(root.iterdir()) if file.suffix.lower() in (".csv", ".tsv") and file.is_file()]
    heads = ((file, next((line for line in _read_head(file).splitlines() if line.strip()), "")) for file in tables)
    return [f"{file.name} has the columns {','.join(read_header(line))!r:.120}" for file, line in heads]


def _find_json_format(file: Path) -> str | None:
    named = file.name.startswith("dataset") and not file.name.startswith(("dataset_dict", "dataset_info"))
    head = _read_head(file).lstrip("\ufeff \t\r\n")
    if head.startswith("["):
        try:
            find_columns(json.JSONDecoder().raw_decode(head[1:].lstrip())[0], ReadLog())
        except (DataError, ValueError, TypeError):
            return None
        return "lavis"
    ends = head + _read_tail(file)
    if '"sentences"' in ends:
        return "karpathy"
    if '"caption"' in ends and '"image_id"' in ends:
        return "coco"
    return "karpathy" if named else None


def _read_head(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _read_tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _HEAD))
        return stream.read().decode("utf-8", "replace")
