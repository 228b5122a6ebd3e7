"""Find the captions of a set: caption files, a saved `datasets` folder, webdataset shards, or pictures beside texts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clip_common import captions
from clip_common.captions import CaptionedImage, ReadLog
from clip_common.errors import DataError
from clipse.data.pairs import has_pairs, read_pairs
from clipse.data.saved import MARKERS, read_saved
from clipse.data.shards import SHARDS, find_shards, read_shards

Reader = Callable[[Sequence[Path], ReadLog], list[CaptionedImage]]

NAMES = {
    **captions.NAMES,
    "datasets": "dataset_dict.json or state.json of Hugging Face datasets",
    "webdataset": "*.tar, *.tar.gz, *.tgz",
    "folder": "pictures with a .txt of the same name",
}
"""Format → names of its files, for messages."""

FORMATS = tuple(NAMES)
"""Values of `data.format` besides `auto`."""


def find_reader(format: str, *, cache: Path) -> Reader:
    """Return the reader of a format of `FORMATS`; it takes the files that `detect` found.

    Args:
        format: The format.
        cache: Folder for unpacked shards.
    """
    if format in captions.PARSERS:
        return lambda files, log: captions.read_caption_files(files, format=format, log=log)
    others: dict[str, Reader] = {
        "datasets": read_saved,
        "webdataset": partial(read_shards, cache=cache),
        "folder": read_pairs,
    }
    return others[format]


def detect(root: Path, log: ReadLog, *, format: str = "auto", files: Sequence[str] = ()) -> tuple[str, list[Path]]:
    """Return the format of a set, and its files: caption files, or the folder or shard itself.

    Args:
        root: The folder, or one file.
        log: Columns that the user named.
        format: `auto`, or the format to look for.
        files: Names in the folder of the files to read together; empty finds them.

    Raises:
        DataError: An unknown format, no captions, files of several formats, or several files where one is to be named;
            the message lists what was looked for.
    """
    if format not in ("auto", *FORMATS):
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    if files:
        return _detect_files([root / name for name in files], log, format=format)
    if root.is_file():
        return _detect_files([root], log, format=format)
    found = captions.find_caption_files(root, log)
    if format in captions.PARSERS:
        if format not in found:
            raise DataError(f"{root}: no {format} captions found; looked for {NAMES[format]}{_headers(root)}")
        return format, captions.choose_files(found[format], root, format=format)
    if format != "auto":
        return format, [root]
    if any((root / marker).is_file() for marker in MARKERS):
        return "datasets", [root]
    for name, of_format in found.items():
        return name, captions.choose_files(of_format, root, format=name)
    if find_shards(root):
        return "webdataset", [root]
    if has_pairs(root):
        return "folder", [root]
    raise DataError(f"{root}: no captions found; looked for {'; '.join(NAMES.values())}{_headers(root)}")


def _detect_files(files: Sequence[Path], log: ReadLog, *, format: str) -> tuple[str, list[Path]]:
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: no such captions file")
    formats = {file: format if format != "auto" else _find_format(file, log) for file in files}
    if len(set(formats.values())) > 1:
        told = ", ".join(f"{file.name} is {name}" for file, name in formats.items())
        raise DataError(f"{told}: files that are read together have one format")
    return formats[files[0]], list(files)


def _find_format(file: Path, log: ReadLog) -> str:
    if file.name.endswith(SHARDS):
        return "webdataset"
    # a table with an unknown header is still a table: its reader says which columns it has
    by_suffix = {".jsonl": "imagefolder", ".parquet": "imagefolder", ".csv": "table", ".tsv": "table", ".txt": "table"}
    found = captions.find_format(file, log) or by_suffix.get(file.suffix.lower())
    if found is None:
        raise DataError(f"{file}: not a captions file of a known format ({'; '.join(NAMES.values())})")
    return found


def _headers(root: Path) -> str:
    """Return what the tables of a folder have instead of captions, as the end of a message."""
    headers = captions.list_headers(root)
    return f". {'; '.join(headers)}: name them, data.columns.image=… data.columns.caption=…" if headers else ""
