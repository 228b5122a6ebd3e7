"""`load_captions`: a folder as people have it, to a checked `CaptionData`."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from clipse.data.errors import DataError
from clipse.data.formats import PARSERS, Row, captions_file, detect
from clipse.data.images import problems_of
from clipse.data.records import CaptionData, ImageRecord, Progress
from clipse.data.shards import read_shards
from clipse.data.splits import draw_splits, split_lists

FOLDERS = ("", "Images", "images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images")
"""Where images lie, relative to the captions file."""


def load_captions(
    root: str | Path,
    *,
    format: str = "auto",
    split_seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
) -> CaptionData:
    """Read a captioned image set in whichever format it is.

    Args:
        root: The folder, or the captions file itself.
        format: `auto`, or one of `formats.FORMATS`.
        split_seed: Seed of the split where the files define none: 75 / 12.5 / 12.5 % by image (6000/1000/1000 of 8000).
        on_error: `raise` stops at missing images and empty captions; `skip` leaves them out and counts them. Under
            `skip` every image is decoded once here, so that what is skipped is known before the first batch.
        progress: Called while images are decoded.

    Raises:
        DataError: One line: what is wrong, the first few cases and their count, what to do.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder; data.root is the folder of images and captions")
    name, file = detect(root) if format == "auto" else (format, captions_file(root, format))
    if name == "webdataset":
        records, unlisted = read_shards(root), 0
    else:
        records, unlisted = _records(merged(PARSERS[name](file)), file.parent)
    if not records:
        raise DataError(f"{file}: holds no captions")
    records, empty = _without_empty_captions(records)
    missing = {record.id: f"{record.path}: no such image" for record in records if not record.path.is_file()}
    if on_error == "raise":
        _refuse(empty, f"{file}: %d empty caption(s)", "fill or remove them")
        _refuse(list(missing.values()), f"{file}: %d captioned image(s) are not there", "restore them")
    else:
        missing |= problems_of([record for record in records if record.id not in missing], progress=progress)
        records = [record for record in records if record.id not in missing and record.captions]
    if len(records) < 2:
        raise DataError(f"{root}: {len(records)} usable image(s); image-text retrieval needs at least 2")
    if not any(record.split for record in records):
        drawn = draw_splits(len(records), seed=split_seed)
        records = [replace(record, split=split) for record, split in zip(records, drawn, strict=True)]
    return CaptionData(
        root=root,
        format=name,
        images=records,
        skipped=len(missing),
        skipped_captions=len(empty),
        problems=[*missing.values(), *empty],
        unlisted=unlisted,
    )


def merged(rows: Iterable[Row]) -> list[Row]:
    """One row an image, in the order of first appearance, with all its captions and the first split that is stated."""
    captions: dict[str, list[str]] = {}
    splits: dict[str, str | None] = {}
    for row in rows:
        captions.setdefault(row.image, []).extend(row.captions)
        splits[row.image] = splits.get(row.image) or row.split
    return [Row(image, tuple(texts), splits[image]) for image, texts in captions.items()]


def _records(rows: list[Row], folder: Path) -> tuple[list[ImageRecord], int]:
    """Records with their files found and their splits looked up; and how many no split list names."""
    lists = {} if any(row.split for row in rows) else split_lists(folder)
    images = _image_folder(rows, folder)
    records: list[ImageRecord] = []
    unlisted = 0
    for row in rows:
        split = row.split or lists.get(Path(row.image).name, "")
        if lists and not split:
            unlisted += 1
            continue
        records.append(ImageRecord(len(records), row.image, images / row.image, row.captions, split))
    if lists and not records:
        raise DataError(f"{folder}: the split lists name none of the {len(rows)} captioned images")
    return records, unlisted


def _image_folder(rows: list[Row], folder: Path) -> Path:
    """The first known folder that holds one of the images; the captions' own folder where none does."""
    for name in FOLDERS:
        if any((folder / name / row.image).is_file() for row in rows[:50]):
            return folder / name
    return folder / "Images"


def _without_empty_captions(records: list[ImageRecord]) -> tuple[list[ImageRecord], list[str]]:
    empty: list[str] = []
    kept = []
    for record in records:
        captions = tuple(caption.strip() for caption in record.captions if caption.strip())
        if len(captions) < len(record.captions) or not captions:
            empty.append(f"{record.name}: an empty caption")
        kept.append(replace(record, captions=captions))
    return kept, empty


def _refuse(problems: list[str], what: str, remedy: str) -> None:
    if problems:
        first = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        raise DataError(f"{what % len(problems)}: {first}: {remedy}, or train without them by data.on_error=skip")
