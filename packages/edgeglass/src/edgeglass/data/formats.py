"""Formats of sets: detection by the files that are there, and one reader each."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from clip_common import captions
from clip_common.errors import DataError, printable
from edgeglass.data.folders import has_folders, read_folders
from edgeglass.data.huggingface import MARKERS, read_datasets
from edgeglass.data.jsonl import find_jsonl, read_jsonl
from edgeglass.data.parquet import find_parquet, read_parquet
from edgeglass.data.records import Sample


def _read_captions(root: Path, log: captions.ReadLog, *, format: str) -> Iterator[Sample]:
    """Yield the images of caption files; what cannot be used goes into the log."""
    files = [root]
    if root.is_dir():
        found = captions.find_caption_files(root).get(format)
        if not found:
            raise DataError(f"{root}: no {format} captions found; looked for {captions.NAMES[format]}")
        files = captions.choose_files(found, root, format=format)
    for id, image in enumerate(captions.read_caption_files(files, format=format, log=log)):
        yield Sample(id, printable(image.name), image.split, image.captions, image=image.path)


READERS: dict[str, Callable[[Path], Iterable[Sample]]] = {
    "datasets": read_datasets,
    "jsonl": lambda root: read_jsonl(find_jsonl(root)),
    "parquet": read_parquet,
    "folders": read_folders,
}
"""Format → reader of a file or folder; those of caption files are `captions.PARSERS`."""

FORMATS = (*READERS, *captions.PARSERS)
"""Values of `data.format` besides `auto`."""

_LOOKED_FOR = (
    "data.jsonl, *.jsonl; *.parquet; dataset_dict.json or state.json of Hugging Face datasets; "
    f"{'; '.join(captions.NAMES.values())}; two of the folders images/, texts/, sounds/"
)


def detect(root: Path) -> str:
    """Return the format of a file or folder.

    Raises:
        DataError: None of the known files; the message lists them.
    """
    if root.is_file():
        by_suffix = {".jsonl": "jsonl", ".parquet": "parquet"}.get(root.suffix.lower())
        found = by_suffix or captions.find_format(root)
    else:
        found = _detect_folder(root)
    if found is None:
        raise DataError(f"{printable(root)}: no set of a known format; looked for {_LOOKED_FOR}")
    return found


def read_format(root: Path, format: str, *, log: captions.ReadLog | None = None) -> list[Sample]:
    """Return the samples of a file or folder in a format of `FORMATS`, as they are there.

    Args:
        root: The file or folder.
        format: Its format.
        log: Receives the rows of caption files that cannot be used; without it they are an error.

    Raises:
        DataError: An unknown format, no such files, or files that cannot be used.
    """
    if format in captions.PARSERS:
        found = log or captions.ReadLog()
        samples = list(_read_captions(root, found, format=format))
        if log is None:
            captions.check_none(found.problems, advice="correct or remove them")
        return samples
    if format not in READERS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    return list(READERS[format](root))


def _detect_folder(root: Path) -> str | None:
    if any((root / name).is_file() for name in MARKERS):
        return "datasets"
    if (root / "data.jsonl").is_file():
        return "jsonl"
    if find_parquet(root):
        return "parquet"
    for format in captions.find_caption_files(root):  # before other JSONL, which may describe the pictures only
        return format
    if any(root.glob("*.jsonl")):
        return "jsonl"
    return "folders" if has_folders(root) else None
