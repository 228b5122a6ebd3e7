"""Manifests, one row per clip, as CSV or JSON lines: read into records and written from them."""

import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_common.errors import DataError
from clip_common.regions import REGIONS
from clip_common.runs.files import write_text
from clip_common.tables import csv_text, explain_unknown, json_lines_text, read_json_lines, read_table
from videoclip.data.records import ClipRecord

COLUMNS = (
    "clip_id", "subject_id", "video", "start_s", "end_s", "label",
    "map", "keypoints", "regions_doctor1", "regions_doctor2", "spans", "fold",
)  # fmt: skip
"""Columns that a manifest may have, as in `ClipRecord`."""
NEEDED = COLUMNS[:3]
"""Columns that it must have."""
_FILES = ("video", "map", "keypoints")
_REGIONS = ("regions_doctor1", "regions_doctor2")

_Row = Mapping[str, Any]


def read_manifest(file: str | Path, *, require_files: bool = True) -> list[ClipRecord]:
    """Read a manifest in UTF-8: a CSV file with a header, or JSON lines (.jsonl) with the same names as keys.

    Only clip_id, subject_id and video are required; an empty cell, null or an absent column is an unknown value. Paths
    are relative to the manifest. Several regions are joined by ";" in CSV and are a list in JSON lines. Spaces around
    values are ignored; names of clips and subjects are converted to Unicode's composed form (NFC), so that one subject
    never becomes two.

    Args:
        file: The manifest.
        require_files: Raise if a file that the manifest names does not exist; otherwise reading that file raises later.

    Raises:
        DataError: One line with the file, its line, what was expected and what to do.
    """
    file = Path(file)
    if file.suffix.lower() not in _READERS:
        raise DataError(f"{file}: a manifest is a {' or '.join(_READERS)} file")
    records: dict[str, ClipRecord] = {}
    places: dict[str, str] = {}
    missing = []
    for line, row in _READERS[file.suffix.lower()](file):
        at = f"line {line}"
        record = _parse_record(row, at=f"{file}, {at}", folder=file.parent)
        if record.clip_id in records:
            raise DataError(
                f"{file}, {at}: clip_id {record.clip_id} is already on {places[record.clip_id]}: rename one"
            )
        records[record.clip_id], places[record.clip_id] = record, at
        missing += [f"{at}: {name} {path}" for name in _FILES if (path := getattr(record, name)) and not path.exists()]
    if not records:
        raise DataError(f"{file}: holds no clips")
    if missing and require_files:
        raise DataError(
            f"{file}: {len(missing)} missing file(s), first {missing[0]}: restore them, or correct the paths"
        )
    return list(records.values())


def write_manifest(records: Iterable[ClipRecord], file: str | Path) -> Path:
    """Write a manifest, .csv or .jsonl, that `read_manifest` reads; paths become relative to it.

    Raises:
        ValueError: Another suffix.
    """
    file = Path(file)
    if file.suffix.lower() not in _READERS:
        raise ValueError(f"{file}: a manifest is a {' or '.join(_READERS)} file")
    rows = [_to_row(record, folder=file.parent) for record in records]
    if file.suffix.lower() == ".jsonl":
        return write_text(file, json_lines_text(rows))
    flat = [row | {name: ";".join(row.get(name, ())) for name in _REGIONS} for row in rows]
    return write_text(file, csv_text(COLUMNS, ([row.get(name) for name in COLUMNS] for row in flat)))


def parse_whole_number(row: _Row, name: str, *, at: str) -> int | None:
    """Return a cell that is a class or a part: a whole number of at least 0; 2.0 is 2, as pandas writes it."""
    value = _parse_number(row, name, at=at, what="a whole number from 0")
    if value is not None and not value.is_integer():
        raise DataError(f"{at}: expected {name} to be a whole number from 0, got {row[name]!r:.60}")
    return None if value is None else int(value)


def parse_name(row: _Row, name: str, *, at: str) -> str:
    """Return a cell that names a clip or a subject."""
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return compose_name(_parse_text({name: value}, name, at=at))


def compose_name(text: str) -> str:
    """Return text in Unicode's composed form: é as one letter, not as e and an accent, as some systems write it."""
    return unicodedata.normalize("NFC", text)


def _read_csv(file: Path) -> Iterator[tuple[int, _Row]]:
    for line, row in read_table(file, needed=NEEDED, known=COLUMNS, delimiter=","):
        lists = {name: [region for region in row.get(name, "").split(";") if region.strip()] for name in _REGIONS}
        yield line, {name: value for name, value in row.items() if value.strip()} | lists


def _read_jsonl(file: Path) -> Iterator[tuple[int, _Row]]:
    for line, row in read_json_lines(file, known=COLUMNS):
        yield line, {name: value for name, value in row.items() if value not in (None, "")}


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl}


def _parse_record(row: _Row, *, at: str, folder: Path) -> ClipRecord:
    start_s = _parse_number(row, "start_s", at=at, what="seconds from 0") or 0.0
    end_s = _parse_number(row, "end_s", at=at, what="seconds from 0")
    if end_s is not None and end_s <= start_s:
        raise DataError(f"{at}: expected end_s after start_s, got start_s={start_s:g} and end_s={end_s:g}")
    paths = {name: folder / _parse_text(row, name, at=at) for name in _FILES if name in row or name in NEEDED}
    spans = row.get("spans", "clip")
    if spans not in ("clip", "video"):
        raise DataError(f"{at}: expected spans to be clip or video, got {spans!r:.60}")
    return ClipRecord(
        clip_id=parse_name(row, "clip_id", at=at),
        subject_id=parse_name(row, "subject_id", at=at),
        video=paths["video"],
        label=parse_whole_number(row, "label", at=at),
        start_s=start_s,
        end_s=end_s,
        map=paths.get("map"),
        keypoints=paths.get("keypoints"),
        regions_doctor1=_parse_regions(row, "regions_doctor1", at=at),
        regions_doctor2=_parse_regions(row, "regions_doctor2", at=at),
        spans=spans,
        fold=parse_whole_number(row, "fold", at=at),
    )


def _to_row(record: ClipRecord, *, folder: Path) -> dict[str, Any]:
    """Return the known values of a clip, in the order of `COLUMNS`."""
    row: dict[str, Any] = {}
    for name in COLUMNS:
        value = getattr(record, name)
        if name in _FILES and value is not None:
            # resolve the folder, because `..` after a link leads elsewhere, but keep the file's own name
            value = Path(os.path.relpath(value.parent.resolve() / value.name, folder.resolve())).as_posix()
        if value is not None and value != ():
            row[name] = list(value) if name in _REGIONS else value
    return row


def _parse_regions(row: _Row, name: str, *, at: str) -> tuple[str, ...]:
    value = row.get(name, [])
    if not isinstance(value, list) or not all(isinstance(region, str) for region in value):
        raise DataError(f"{at}: expected {name} to be a list of regions, got {value!r:.60}")
    regions = tuple(dict.fromkeys(region.strip() for region in value))
    unknown = [region for region in regions if region not in REGIONS]
    if unknown:
        raise DataError(f"{at}: {explain_unknown(unknown[0], kind=f'region in {name}', known=tuple(REGIONS))}")
    return regions


def _parse_number(row: _Row, name: str, *, at: str, what: str) -> float | None:
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


def _parse_text(row: _Row, name: str, *, at: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{at}: expected {name} as text, got {'nothing' if value is None else repr(value)[:60]}")
    return value.strip()
