"""Captions in JSON, JSON lines and parquet: Karpathy, COCO, LAVIS, and the metadata of an imagefolder."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_common.captions.columns import Row, find_columns, make_row
from clip_common.captions.problems import Place, ReadLog
from clip_common.captions.splits import find_file_split
from clip_common.captions.tables import read_lenient_text
from clip_common.errors import DataError, check_extra

Lines = dict[str | None, list[int]]
"""Key of an array, None for a list itself → the line on which each of its entries begins."""

_SPACE = re.compile(r"[ \t\n\r]*")


def parse_karpathy(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse Karpathy's JSON: {"images": [{"filename", "filepath"?, "split", "sentences": [{"raw"}]}]}.

    The split `restval` is used for training.
    """
    for place, entry in _entries(_read(file, log), "images", file, log, layout="Karpathy's JSON"):
        try:
            name = "/".join(part for part in (entry.get("filepath"), entry["filename"]) if part)
            captions = [sentence["raw"] for sentence in entry["sentences"]]
            values = {"image": name, "caption": captions, "split": entry.get("split")}
        except (KeyError, TypeError, AttributeError) as error:
            log.add("row", place, f"not Karpathy's JSON of images, filename, split and sentences ({error!r})")
            continue
        row = make_row(values, place, log, split=find_file_split(file))
        if row is not None:
            yield row


def parse_coco(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse COCO's annotations: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}."""
    split = find_file_split(file)
    content = _read(file, log)
    names: dict[Any, tuple[Any, Place]] = {}
    for place, entry in _entries(content, "images", file, log, layout="COCO's JSON"):
        if isinstance(entry, dict) and isinstance(entry.get("id"), int | str) and "file_name" in entry:
            names[entry["id"]] = entry["file_name"], place
        else:
            log.add("row", place, f"expected an image of COCO with id and file_name, got {entry!r:.80}")
    captioned: set[Any] = set()
    for place, entry in _entries(content, "annotations", file, log, layout="COCO's JSON"):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), int | str) or "caption" not in entry:
            log.add("row", place, f"expected an annotation of COCO with image_id and caption, got {entry!r:.80}")
            continue
        id = entry["image_id"]
        if id not in names:
            log.add("row", place, f"image_id {id!r:.40} is not among the images: add it, or remove the annotation")
            continue
        captioned.add(id)
        row = make_row({"image": names[id][0], "caption": entry["caption"]}, place, log, split=split)
        if row is not None:
            yield row
    for id, (name, place) in names.items():
        row = None if id in captioned else make_row({"image": name, "caption": []}, place, log, split=split)
        if row is not None:
            yield row


def parse_lavis(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse LAVIS's JSON: [{"image", "caption": a text or a list of them}]; the file's name states the split."""
    yield from _parse_objects(_entries(_read(file, log), None, file, log, layout="LAVIS's JSON"), file, log)


def parse_json_lines(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse one JSON object a line, such as {"file_name", "text"} of an imagefolder's metadata.jsonl."""
    yield from _parse_objects(_read_json_lines(file, log), file, log)


def parse_parquet(file: Path, log: ReadLog) -> Iterator[Row]:
    """Parse the metadata.parquet of an imagefolder, by its columns.

    Raises:
        ValueError: pyarrow is not installed.
    """
    check_extra("pyarrow>=20.0", "pyarrow", purpose=f"{file}: parquet")
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as opened:
            roles = find_columns(opened.schema_arrow.names, log)
            table = opened.read(columns=list(roles.values()))
    except (pyarrow.ArrowException, OSError) as error:
        log.add("file", Place(file), f"not a readable parquet file ({' '.join(str(error).split())})")
        return
    except DataError as error:
        log.add("file", Place(file), str(error))
        return
    columns = {role: table[name].to_pylist() for role, name in roles.items()}
    for number in range(len(table)):
        values = {role: column[number] for role, column in columns.items()}
        row = make_row(values, Place(file, number + 1, "row"), log, split=find_file_split(file))
        if row is not None:
            yield row


def read_numbered_json(text: str) -> tuple[Any, Lines]:
    """Return a JSON value, and the line on which each entry of its arrays begins: by key, under None for a list itself.

    Raises:
        ValueError: Not JSON; `JSONDecodeError` where it says so, with the line.
    """
    scan = _Scan(text)
    lines: Lines = {}
    value: Any = {}
    opening = scan.peek()
    if opening == "[":
        value, lines[None] = scan.array()
    elif opening == "{":
        for key in scan.object_keys():
            value[key] = None
            if scan.peek() == "[":
                value[key], lines[key] = scan.array()
            else:
                value[key] = scan.value()
    else:
        value = scan.value()
    scan.end()
    return value, lines


class _Scan:
    """Position in JSON text; values are decoded one at a time, so that each has a line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.here = 0
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        self.here = _SPACE.match(self.text, self.here).end()  # type: ignore[union-attr]
        return self.text[self.here : self.here + 1]

    def value(self) -> Any:
        self.peek()
        value, self.here = self.decode(self.text, self.here)
        return value

    def take(self, wanted: str) -> str:
        found = self.peek()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"Expecting {' or '.join(wanted)}", self.text, self.here)
        self.here += 1
        return found

    def array(self) -> tuple[list[Any], list[int]]:
        values: list[Any] = []
        lines: list[int] = []
        self.take("[")
        line, counted = self.text.count("\n", 0, self.here) + 1, self.here
        if self.peek() == "]":
            self.take("]")
            return values, lines
        while True:
            self.peek()
            line += self.text.count("\n", counted, self.here)
            counted = self.here
            lines.append(line)
            values.append(self.value())
            if self.take(",]") == "]":
                return values, lines

    def object_keys(self) -> Iterator[str]:
        """Yield the keys of an object; the caller takes each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise json.JSONDecodeError("Expecting a key in quotes", self.text, self.here)
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def end(self) -> None:
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.text, self.here)


def _read(file: Path, log: ReadLog) -> tuple[Any, Lines] | None:
    """Return the value and the lines of a JSON file; None, and a problem in the log, if it is not one."""
    text = read_lenient_text(file, log)
    if text is None:
        return None
    try:
        return read_numbered_json(text)
    except json.JSONDecodeError as error:
        log.add("file", Place(file, error.lineno), f"not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        log.add("file", Place(file), f"not JSON ({error})")
    return None


def _entries(
    content: tuple[Any, Lines] | None, key: str | None, file: Path, log: ReadLog, *, layout: str
) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the value of each entry of an array: that of a key, or the file's own."""
    if content is None:
        return
    value, lines = content
    if key not in lines:
        got = f"the keys {', '.join(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        wanted = "a list" if key is None else f"a list {key!r}"
        log.add("file", Place(file), f"not {layout}: expected {wanted}, got {got:.160}")
        return
    for line, entry in zip(lines[key], value if key is None else value[key], strict=True):
        yield Place(file, line), entry


def _read_json_lines(file: Path, log: ReadLog) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate((read_lenient_text(file, log) or "").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield Place(file, number), json.loads(line)
        except (ValueError, RecursionError) as error:
            log.add("row", Place(file, number), f"not JSON ({error})")


def _parse_objects(entries: Iterator[tuple[Place, Any]], file: Path, log: ReadLog) -> Iterator[Row]:
    split = find_file_split(file)
    for place, entry in entries:
        if not isinstance(entry, dict):
            log.add("row", place, f"expected a JSON object, got {entry!r:.60}")
            continue
        try:
            roles = find_columns(entry, log)
        except DataError as error:
            log.add("row", place, str(error))
            continue
        row = make_row({role: entry[name] for role, name in roles.items()}, place, log, split=split)
        if row is not None:
            yield row
