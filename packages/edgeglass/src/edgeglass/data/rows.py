"""From a row of any format to a sample: which keys hold what, and what is refused."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_common.captions import parse_split
from clip_common.errors import DataError, printable
from edgeglass.data.records import Sample, Source

IMAGES = ("image", "image_url")
AUDIO = ("audio",)
TEXTS = ("captions", "caption", "text", "transcripts")
"""Keys or columns of each modality. If a row has several, the first that is not null counts."""

KEYS = (*IMAGES, *TEXTS, *AUDIO, "split")

_SPLIT_NAME = re.compile(r"(train|val|valid|validation|dev|test)(?![a-z])")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        values: By key or column: images and sounds as paths or `Blob`s.
        at: Place of the row, for messages.
        folder: Paths are relative to it.
        split: Split that the name of the file or of its folder states.
    """

    values: Mapping[str, Any]
    at: str
    folder: Path
    split: str | None


def make_sample(row: Mapping[str, Any], *, id: int, at: str, folder: Path, split: str | None = None) -> Sample:
    """Return the sample of a row with some of the keys `KEYS`; null is absent.

    Args:
        row: Images and sounds as paths or `Blob`s, captions as a text or a list of texts.
        id: Position in the set.
        at: Place of the row, for messages.
        folder: Paths are relative to it.
        split: Split of a row that states none.

    Raises:
        DataError: A row without image, captions and sound, or a value of another type; a URL; an unknown split.
    """
    image, audio, texts = (_first(row, keys) for keys in (IMAGES, AUDIO, TEXTS))
    if image is None and audio is None and texts is None:
        raise DataError(f"{at}: neither an image nor a caption nor a sound ({', '.join(KEYS)}): remove it")
    return Sample(
        id=id,
        name=next((name_value(value) for value in (image, audio) if value is not None), at),
        split=read_split(row, at=at) or split or "",
        captions=_parse_captions(texts, at=at),
        image=find_source(image, folder=folder, what="an image", at=at),
        audio=find_source(audio, folder=folder, what="a sound", at=at),
    )


def read_split(row: Mapping[str, Any], *, at: str) -> str | None:
    """Return the split that a row states; None if it states none.

    Raises:
        DataError: Not a text, or an unknown split.
    """
    stated = row.get("split")
    if not isinstance(stated, str | None):
        raise DataError(f"{at}: expected a split as text, got {stated!r:.60}")
    return parse_split(stated, at=at)


def name_split(parts: Iterable[str]) -> str | None:
    """Return the split that the first file or folder name of these states, such as `train-00000.parquet`."""
    for part in parts:
        found = _SPLIT_NAME.match(part.lower())
        if found:
            return parse_split(found[1], at=part)
    return None


def _first(row: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) is not None), None)


def name_value(value: Any) -> str:
    """Return the name of an image or a sound as the set gives it."""
    return value.name if hasattr(value, "read") else printable(str(value))


def _parse_captions(value: Any, *, at: str) -> tuple[str, ...]:
    """Return captions as they are; null in a list is an empty caption."""
    if value is None:
        return ()
    texts = value if isinstance(value, list) else [value]
    return tuple(parse_text(text, what="caption", at=at) for text in texts)


def parse_text(value: Any, *, what: str, at: str) -> str:
    """Return a text as it is; null is an empty one.

    Raises:
        DataError: Of another type, or not valid Unicode.
    """
    if not isinstance(value, str | None):
        raise DataError(f"{at}: expected {what}s as texts, got {value!r:.60}: write them in quotes, or remove them")
    # JSON can hold half a character, which no tokenizer reads
    if value and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise DataError(f"{at}: the {what} {value!r:.60} is not valid Unicode: write it again")
    return value or ""


def find_source(value: Any, *, folder: Path, what: str, at: str) -> Source | None:
    """Return the source of a path or a `Blob`; null has none.

    Raises:
        DataError: A value of another type, or a URL.
    """
    if value is None or hasattr(value, "read"):
        return value
    if not isinstance(value, str) or not value:
        raise DataError(f"{at}: expected the path of {what}, got {value!r:.60}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", value):
        raise DataError(
            f"{at}: {what} is given by a URL, {value:.60}, and nothing is downloaded: save the files and give their "
            f"paths as {'image' if what == 'an image' else 'audio'}"
        )
    return folder / value
