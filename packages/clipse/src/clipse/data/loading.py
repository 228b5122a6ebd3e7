"""Load a captioned image set: `load_captions` by arguments, `read_records` by configuration."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clip_common.captions import read_caption_file
from clip_common.errors import DataError
from clip_common.reporting import Progress
from clipse.config import DataConfig
from clipse.data.detection import detect, find_captions_file
from clipse.data.records import CaptionData, ImageRecord
from clipse.data.shards import read_shards
from clipse.data.splits import draw_splits, hold_out
from clipse.data.unreadable import find_unreadable


def load_captions(
    root: str | Path,
    *,
    format: str = "auto",
    split_seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> CaptionData:
    """Read a captioned image set in any known format.

    Args:
        root: The folder, or the captions file itself.
        format: `auto`, or one of `detection.FORMATS`.
        split_seed: Seed of the random split if the files define none: 75 / 12.5 / 12.5 % by image (6000/1000/1000 of
            8000).
        on_error: `raise` stops at missing images and empty captions; `skip` leaves them out and counts them. With
            `skip` every image is decoded once here, so that the number of skipped images is known before training.
        cache: Folder in which `skip` keeps which images can be read, so that it decodes an image once.
        progress: Called while images are decoded.

    Raises:
        DataError: One line: the problem, the first few cases with their count, and what to do.
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder; data.root is the folder of images and captions")
    name, file = detect(root) if format == "auto" else (format, find_captions_file(root, format))
    if name == "webdataset":
        records = read_shards(root)
    else:
        images = read_caption_file(file, format=name)
        records = [
            ImageRecord(n, image.name, image.path, image.captions, image.split) for n, image in enumerate(images)
        ]
    if not records:
        raise DataError(f"{file}: holds no captions")
    # split before anything is skipped, so that a broken image does not move others to another split
    records, unlisted = _in_splits(records, seed=split_seed)
    records, empty = _without_empty_captions(records)
    found = len(records)
    missing = {record.id: f"{record.path}: no such image" for record in records if not record.path.is_file()}
    if on_error == "raise":
        _check_none(empty, f"{file}: %d empty caption(s)", "fill or remove them")
        _check_none(list(missing.values()), f"{file}: %d captioned image(s) are missing", "restore them")
    else:
        present = [record for record in records if record.id not in missing]
        missing |= find_unreadable(present, cache=cache, progress=progress)
        records = [record for record in records if record.id not in missing and record.captions]
    if len(records) < 2:
        raise DataError(f"{root}: {len(records)} usable image(s); image-text retrieval needs at least 2")
    return CaptionData(
        root=root,
        format=name,
        images=records,
        skipped=found - len(records),
        skipped_captions=len(empty),
        problems=[*missing.values(), *empty],
        unlisted=unlisted,
    )


@dataclass(frozen=True)
class Records:
    """The images of each split, and the number of broken images that were left out."""

    splits: dict[str, list[ImageRecord]]
    skipped: int


def read_records(config: DataConfig, *, cache: Path | None = None) -> Records:
    """Read the configured set; `hold_out` training images become `val` if the set has none.

    Args:
        config: The section `data`.
        cache: As for `load_captions`.

    Raises:
        DataError: No `data.root`, or a set that cannot be used (one line with the reason).
    """
    if config.root is None:
        raise DataError("data.root is not set: give the folder of images and captions, e.g. data.root=flickr8k/")
    data = load_captions(
        config.root, format=config.format, split_seed=config.split_seed, on_error=config.on_error, cache=cache
    )
    splits = {name: data.split(name) for name in ("train", "val", "test")}
    if config.hold_out:
        if splits["val"]:
            raise DataError(f"{config.root} has a val split of {len(splits['val'])}: leave data.hold_out at 0")
        splits["train"], splits["val"] = hold_out(splits["train"], count=config.hold_out, seed=config.split_seed)
    return Records(splits=splits, skipped=data.skipped)


def _in_splits(records: list[ImageRecord], *, seed: int) -> tuple[list[ImageRecord], int]:
    """Return the records with a split, stated or else drawn, and the number of records without a stated one."""
    if not any(record.split for record in records):
        drawn = draw_splits(len(records), seed=seed)
        return [replace(record, split=split) for record, split in zip(records, drawn, strict=True)], 0
    stated = [record for record in records if record.split]
    return stated, len(records) - len(stated)


def _without_empty_captions(records: list[ImageRecord]) -> tuple[list[ImageRecord], list[str]]:
    empty: list[str] = []
    kept = []
    for record in records:
        captions = tuple(caption.strip() for caption in record.captions if caption.strip())
        blank = len(record.captions) - len(captions)
        empty += [f"{record.name}: {'an empty' if blank else 'no'} caption"] * max(blank, not captions)
        kept.append(replace(record, captions=captions))
    return kept, empty


def _check_none(problems: list[str], what: str, remedy: str) -> None:
    if problems:
        first = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        raise DataError(f"{what % len(problems)}: {first}: {remedy}, or train without them with data.on_error=skip")
