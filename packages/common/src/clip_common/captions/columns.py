"""Names of columns and keys that hold the image, the caption and the split; a row of named values to a `Row`."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from clip_common.captions.problems import Place, ReadLog
from clip_common.captions.splits import parse_split
from clip_common.errors import DataError, check_list

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image_path", "filepath", "file_path", "path", "file_name", "filename", "image_name", "image", "image_file"),
        *("image_filename", "img", "img_path", "img_name", "file"),
    ),
    "caption": (
        *("captions", "caption", "comment", "text", "title", "sentence", "sentences", "description", "raw_caption"),
    ),
    "split": ("split",),
}
"""Role → names of its column or key, in any letter case and with spaces or hyphens for _; of several, the first."""

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Row:
    """Captions of one image in a file.

    Attributes:
        image: Path of the image as the file gives it.
        captions: Any number, some may be empty.
        split: `train`, `val` or `test`; None if none is stated.
        place: Where it is.
        span: Offset and size in bytes of the encoded image inside the file `place.file`; None if `image` is a file.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    place: Place
    span: tuple[int, int] | None = None


def find_columns(
    names: Collection[str], log: ReadLog, *, needed: Collection[str] = ("image", "caption")
) -> dict[str, str]:
    """Return the column of each role: the one that `log.columns` names, else the first known one.

    Args:
        names: Columns of a header, or keys of an object.
        log: Columns that the user named.
        needed: Roles without which the rows cannot be used.

    Raises:
        DataError: A named column is absent, or a needed role has no column: one line that shows the names.
    """
    check_list(names, "names")
    check_list(needed, "needed")
    plain = {_normalise(name): name for name in names}
    got = ",".join(map(str, names))
    found: dict[str, str] = {}
    for role, known in COLUMNS.items():
        named = log.columns.get(role)
        if named is not None:
            if _normalise(named) not in plain:
                raise DataError(f"no column {named} for the {role} (data.columns.{role}), got {got!r:.160}")
            found[role] = plain[_normalise(named)]
            continue
        column = next((plain[name] for name in known if name in plain), None)
        if column is not None:
            found[role] = column
        elif role in needed:
            raise DataError(
                f"no column for the {role}, got {got!r:.160}: known are {', '.join(known)}; rename yours, or name it "
                f"with data.columns.{role}"
            )
    for column in found.values():
        if sum(_normalise(name) == _normalise(column) for name in names) > 1:
            raise DataError(f"two columns {column} in {got!r:.160}: rename one")
    return found


def make_row(values: Mapping[str, Any], place: Place, log: ReadLog, *, split: str | None = None) -> Row | None:
    """Return the row of the values of each role; None, and a problem in the log, if it cannot be used.

    Args:
        values: Role → value: a path; a caption, a list of them or null; the name of a split.
        place: Where the row is.
        log: Receives the problem.
        split: Split of a row that states none.
    """
    image, said = values.get("image"), values.get("caption")
    if not isinstance(image, str) or not image.strip():
        log.add("row", place, f"expected the path of an image, got {image!r:.60}: write it, or remove the row")
        return None
    if "\0" in image or (len(image) > 60 and max(map(len, image.encode("utf-8", "surrogatepass").split(b"/"))) > 255):
        log.add("row", place, f"expected the path of an image, got {image!r:.60}: no file can have this name")
        return None
    try:
        given = [] if said is None and "caption" not in values else said if isinstance(said, list) else [said]
        captions = tuple(parse_caption(text, sample=image.strip()) for text in given)
    except DataError as error:
        log.add("caption", place, str(error))
        return None
    stated = values.get("split")
    if not isinstance(stated, str | None):
        log.add("split", place, f"expected a split as text, got {stated!r:.60}")
        return None
    try:
        return Row(image.strip(), captions, parse_split(stated, at=image.strip()) or split, place)
    except DataError as error:
        log.add("split", place, str(error))
        return None


def parse_caption(value: Any, *, sample: str) -> str:
    """Return a caption from JSON, where null is an empty caption.

    Raises:
        DataError: Neither text nor null, or half a character, which JSON can hold and no tokenizer reads.
    """
    if not isinstance(value, str | None):
        raise DataError(f"{sample}: expected a caption as text, got {value!r:.80}: write it in quotes, or remove it")
    if value and not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"{sample}: the caption {value!r:.60} is not valid Unicode: write it again in UTF-8")
    return value or ""


def _normalise(name: Any) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")
