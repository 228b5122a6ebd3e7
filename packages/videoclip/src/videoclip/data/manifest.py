"""Manifests: one row a clip, as CSV or as JSON lines, read into records and written from them."""

import csv
import difflib
import io
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from clip_common.runs.files import write_text
from videoclip.data.records import ClipRecord

COLUMNS = (
    "clip_id", "subject_id", "video", "start_s", "end_s", "label",
    "map", "keypoints", "regions_doctor1", "regions_doctor2", "spans", "fold",
)  # fmt: skip
"""What a manifest may say of a clip, as in `ClipRecord`."""
NEEDED = COLUMNS[:3]
"""What it must say."""
_FILES = ("video", "map", "keypoints")
_REGIONS = ("regions_doctor1", "regions_doctor2")

_Row = Mapping[str, Any]


def read_manifest(file: str | Path, *, require_files: bool = True) -> list[ClipRecord]:
    """Read a manifest in UTF-8: a CSV file with a header, or JSON lines (.jsonl) with the same names as keys.

    Only clip_id, subject_id and video are needed; an empty cell, null, or a column left out is a value that is not
    known. Paths are relative to the manifest. Several regions are joined by ";" in CSV and a list in JSON lines. Spaces
    around a value do not count; names of clips and subjects are in Unicode's composed form (NFC), so that one subject
    is never two.

    Args:
        file: The manifest.
        require_files: Refuse a manifest that names files which are not there. Without, who reads one will tell.

    Raises:
        DataError: One line with the file, the line of the file, what was expected and what to do.
    """
    file = Path(file)
    if file.suffix.lower() not in _READERS:
        raise DataError(f"{file}: a manifest is a file {' or '.join(_READERS)}")
    records: dict[str, ClipRecord] = {}
    places: dict[str, str] = {}
    missing = []
    for at, row in _READERS[file.suffix.lower()](file):
        record = _record(row, at=f"{file}, {at}", folder=file.parent)
        if record.clip_id in records:
            raise DataError(
                f"{file}, {at}: clip_id {record.clip_id} is that of {places[record.clip_id]} too: rename one"
            )
        records[record.clip_id], places[record.clip_id] = record, at
        missing += [f"{at}: {name} {path}" for name in _FILES if (path := getattr(record, name)) and not path.exists()]
    if not records:
        raise DataError(f"{file}: holds no clips")
    if missing and require_files:
        raise DataError(f"{file}: {len(missing)} missing file(s), first {missing[0]}: restore them, or mend the paths")
    return list(records.values())


def write_manifest(records: Iterable[ClipRecord], file: str | Path) -> Path:
    """Write a manifest, .csv or .jsonl, that `read_manifest` reads; paths become relative to it.

    Raises:
        ValueError: Another suffix.
    """
    file = Path(file)
    if file.suffix.lower() not in _READERS:
        raise ValueError(f"{file}: a manifest is a file {' or '.join(_READERS)}")
    rows = [_row(record, folder=file.parent) for record in records]
    if file.suffix.lower() == ".jsonl":
        return write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {name: ";".join(row.get(name, ())) for name in _REGIONS} for row in rows)
    return write_text(file, stream.getvalue())


def read_table(file: Path, *, needed: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its place, such as `line 3`.

    Raises:
        DataError: Not such a file, or other columns.
    """
    reader = csv.DictReader(io.StringIO(_text_of(file), newline=""), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        absent = [name for name in needed if name not in columns]
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise DataError(f"{file}, line 1: {_unknown(unknown[0], 'column', known, wanted=absent)}")
        if absent:
            raise DataError(f"{file}, line 1: no column {', '.join(absent)}; needed are {','.join(needed)}")
        if len(set(columns)) < len(columns):
            raise DataError(f"{file}, line 1: a column stands twice: {','.join(columns)}")
        for row in reader:
            at = f"line {reader.line_num}"
            if None in row or None in row.values():
                more = "more" if None in row else "fewer"
                raise DataError(f"{file}, {at}: expected {len(columns)} cells as in the header, got {more}")
            yield at, row
    except csv.Error as error:  # such as a quote that is never closed; line_num is that of the last whole row
        raise DataError(f"{file}, line {reader.line_num + 1}: not comma-separated values ({error})") from error


def whole_number(row: _Row, name: str, *, at: str) -> int | None:
    """The value of a row that is a class or a part: whole and at least 0; 2.0 is 2, as pandas writes it."""
    value = _number(row, name, at=at, what="a whole number from 0")
    if value is not None and not value.is_integer():
        raise DataError(f"{at}: expected {name} to be a whole number from 0, got {row[name]!r:.60}")
    return None if value is None else int(value)


def identifier(row: _Row, name: str, *, at: str) -> str:
    """The value of a row that names a clip or a subject."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return composed(_text({name: value}, name, at=at))


def composed(text: str) -> str:
    """The one way of writing it in Unicode: é as a letter, not as e and an accent, which some systems make of it."""
    return unicodedata.normalize("NFC", text)


def _read_csv(file: Path) -> Iterator[tuple[str, _Row]]:
    for at, row in read_table(file, needed=NEEDED, known=COLUMNS):
        lists = {name: [region for region in row.get(name, "").split(";") if region.strip()] for name in _REGIONS}
        yield at, {name: value for name, value in row.items() if value.strip()} | lists


def _read_jsonl(file: Path) -> Iterator[tuple[str, _Row]]:
    for number, line in enumerate(_text_of(file).split("\n"), start=1):
        at = f"line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, {at}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, {at}: expected a JSON object, got {line.strip()!r:.60}")
        unknown = [name for name in row if name not in COLUMNS]
        if unknown:
            raise DataError(f"{file}, {at}: {_unknown(unknown[0], 'key', COLUMNS, wanted=set(NEEDED) - set(row))}")
        yield at, {name: value for name, value in row.items() if value not in (None, "")}


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl}


def _record(row: _Row, *, at: str, folder: Path) -> ClipRecord:
    start_s = _number(row, "start_s", at=at, what="seconds from 0") or 0.0
    end_s = _number(row, "end_s", at=at, what="seconds from 0")
    if end_s is not None and end_s <= start_s:
        raise DataError(f"{at}: expected end_s after start_s, got start_s={start_s:g} and end_s={end_s:g}")
    paths = {name: folder / _text(row, name, at=at) for name in _FILES if name in row or name in NEEDED}
    spans = row.get("spans", "clip")
    if spans not in ("clip", "video"):
        raise DataError(f"{at}: expected spans to be clip or video, got {spans!r:.60}")
    return ClipRecord(
        clip_id=identifier(row, "clip_id", at=at),
        subject_id=identifier(row, "subject_id", at=at),
        video=paths["video"],
        label=whole_number(row, "label", at=at),
        start_s=start_s,
        end_s=end_s,
        map=paths.get("map"),
        keypoints=paths.get("keypoints"),
        regions_doctor1=_regions(row, "regions_doctor1", at=at),
        regions_doctor2=_regions(row, "regions_doctor2", at=at),
        spans=spans,
        fold=whole_number(row, "fold", at=at),
    )


def _row(record: ClipRecord, *, folder: Path) -> dict[str, Any]:
    """What is known of a clip, in the order of `COLUMNS`."""
    row: dict[str, Any] = {}
    for name in COLUMNS:
        value = getattr(record, name)
        if name in _FILES and value is not None:
            # real folders: `..` behind a link leads elsewhere; the file's own name stays, even where it is a link
            value = Path(os.path.relpath(value.parent.resolve() / value.name, folder.resolve())).as_posix()
        if value is not None and value != ():
            row[name] = list(value) if name in _REGIONS else value
    return row


def _regions(row: _Row, name: str, *, at: str) -> tuple[str, ...]:
    value = row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(region, str) for region in value):
        raise DataError(f"{at}: expected {name} to be a list of regions, got {value!r:.60}")
    regions = tuple(dict.fromkeys(region.strip() for region in value))
    unknown = [region for region in regions if region not in REGIONS]
    if unknown:
        raise DataError(f"{at}: {_unknown(unknown[0], f'region in {name}', tuple(REGIONS))}")
    return regions


def _number(row: _Row, name: str, *, at: str, what: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise DataError(f"{at}: expected {name} to be {what}, got {value!r:.60}")
    return number


def _text(row: _Row, name: str, *, at: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{at}: expected {name} as text, got {'nothing' if value is None else repr(value)[:60]}")
    return value.strip()


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def _unknown(name: str, kind: str, known: Sequence[str], *, wanted: Iterable[str] = ()) -> str:
    # a needed name that is not there is what was most likely meant
    near = difflib.get_close_matches(name, list(wanted), n=1) or difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown {kind} {name!r:.60}: {meant}known are {', '.join(known)}"
