"""Formats of sets of questions: detection by the files that are there, and one reader each."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from clip_common.errors import DataError, printable
from clip_common.tables import read_json
from edgeglass.config import QuestionDataConfig
from edgeglass.data import formats as sample_formats
from edgeglass.data.conversations.published import (
    find_gqa,
    find_textvqa,
    find_vqav2,
    read_gqa,
    read_textvqa,
    read_vqav2,
)
from edgeglass.data.conversations.rows import ASKING, KEYS, make_conversation
from edgeglass.data.jsonl import choose_files, read_jsonl_rows
from edgeglass.data.parquet import find_parquet, read_columns, read_parquet_rows
from edgeglass.data.records import Conversation, Turn
from edgeglass.data.rows import Row, name_split
from edgeglass.data.splits import merge_rows

_HEAD = 1 << 16  # bytes of a file in which the keys of its first row are looked for
_ASKING = re.compile(rf'"({"|".join(ASKING)})"\s*:')


def _read_jsonl(root: Path, config: QuestionDataConfig) -> Iterator[Conversation]:
    return _make_conversations(read_jsonl_rows(choose_files(_find_asking(root, ".jsonl"), root)), config)


def _read_json(root: Path, config: QuestionDataConfig) -> Iterator[Conversation]:
    return _make_conversations(_read_json_rows(choose_files(_find_asking(root, ".json"), root)), config)


def _read_parquet(root: Path, config: QuestionDataConfig) -> Iterator[Conversation]:
    return _make_conversations(read_parquet_rows(root, keys=KEYS), config)


def _read_captions(root: Path, config: QuestionDataConfig) -> Iterator[Conversation]:
    """Yield one conversation a caption; samples without an image or a caption have none."""
    if config.images is not None:
        raise DataError(f"data.images={config.images}: captions say where their images are: remove it")
    id = 0
    for sample in merge_rows(sample_formats.read_format(root, sample_formats.detect(root))):
        if sample.image is None:
            continue
        captions = [caption.strip() for caption in sample.captions]
        references = tuple(caption for caption in captions if caption)
        for caption in captions:
            turn = Turn(config.caption_prompt, caption, references, type="caption")
            yield Conversation(id, sample.name, sample.split, sample.image, (turn,))
            id += 1


READERS: dict[str, Callable[[Path, QuestionDataConfig], Iterable[Conversation]]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "vqav2": lambda root, config: read_vqav2(root, images=_images(config)),
    "gqa": lambda root, config: read_gqa(root, images=_images(config)),
    "textvqa": lambda root, config: read_textvqa(root, images=_images(config)),
    "captions": _read_captions,
}
"""Format → reader of a file or folder."""

FORMATS = tuple(READERS)
"""Values of `data.format` besides `auto`."""


def detect_format(root: Path) -> str:
    """Return the format of a file or folder: that of its questions, or `captions`.

    Raises:
        DataError: None of the known files; the message lists them.
    """
    found = find_question_format(root)
    if found is not None:
        return found
    try:
        sample_formats.detect(root)
    except DataError as error:
        raise DataError(
            f"{error}; or for questions: *.jsonl, *.json or *.parquet with {' or '.join(ASKING)}; files of VQAv2, GQA "
            "or TextVQA"
        ) from error
    return "captions"


def find_question_format(root: Path) -> str | None:
    """Return the format of the questions in a file or folder; None if there are none, though there may be captions."""
    published = {"gqa": find_gqa, "textvqa": find_textvqa, "vqav2": find_vqav2}
    for format, find in published.items():
        if find(root):
            return format
    for suffix in (".jsonl", ".json"):
        if _find_asking(root, suffix):
            return suffix.removeprefix(".")
    tables = find_parquet(root) if root.is_dir() or root.suffix.lower() == ".parquet" else []
    return "parquet" if tables and set(ASKING) & set(read_columns(tables[0])) else None


def holds_questions(root: Path, *, format: str = "auto") -> bool:
    """Return whether a format, or else the files, are those of questions; captions are not, unless `format` says so."""
    return format in set(FORMATS) - set(sample_formats.FORMATS) or find_question_format(root) is not None


def read_format(root: Path, config: QuestionDataConfig) -> tuple[str, list[Conversation]]:
    """Return the format of a set and its conversations, as they are there.

    Raises:
        DataError: An unknown format, no such files, or files that cannot be used.
    """
    format = detect_format(root) if config.format == "auto" else config.format
    if format not in READERS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    found = READERS[format](root, config)
    return format, [replace(conversation, id=id) for id, conversation in enumerate(found)]


def _images(config: QuestionDataConfig) -> Path | None:
    return None if config.images is None else Path(config.images)


def _make_conversations(rows: Iterable[Row], config: QuestionDataConfig) -> Iterator[Conversation]:
    for id, row in enumerate(rows):
        yield make_conversation(row, id=id, images=_images(config))


def _find_asking(root: Path, suffix: str) -> list[Path]:
    """Return the file, or the files in a folder, with this suffix whose first row has a question."""
    files = [root] if root.is_file() else sorted(root.glob(f"*{suffix}"))
    return [file for file in files if file.suffix.lower() == suffix and _asks(file)]


def _asks(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(_HEAD).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    return head.startswith("[" if file.suffix.lower() == ".json" else "{") and _ASKING.search(head) is not None


def _read_json_rows(files: Iterable[Path]) -> Iterator[Row]:
    """Yield the rows of JSON files, each a list of objects."""
    for file in files:
        split = name_split([file.name])
        for number, values in enumerate(read_json(file)):
            at = f"{printable(file)}, entry {number}"
            if not isinstance(values, dict):
                raise DataError(f"{at}: expected an object, got {values!r:.60}")
            yield Row(values, at=at, folder=file.parent, split=split)
