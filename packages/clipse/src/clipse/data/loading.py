"""Load a captioned image set: `load_captions` by arguments, `read_records` by configuration."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clip_common.captions import Place, ReadLog, check_none
from clip_common.errors import DataError, check_list
from clip_common.reporting import Progress
from clipse.config import DataConfig
from clipse.data.detection import detect, find_reader
from clipse.data.records import CaptionData, ImageRecord
from clipse.data.splits import draw_splits, hold_out
from clipse.data.unreadable import find_unreadable

DEFAULT_CACHE = Path("runs") / "cache"
"""Folder for unpacked shards where none is given; the default of `data.cache_dir` too."""


def load_captions(
    root: str | Path,
    *,
    format: str = "auto",
    files: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split_seed: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> CaptionData:
    """Read a captioned image set in any known format.

    Args:
        root: The folder, or the captions file itself.
        format: `auto`, or one of `detection.FORMATS`.
        files: Caption files in the folder to read together; empty finds them.
        columns: Role (`image`, `caption`, `split`) → name of its column or key, where `captions.COLUMNS` has it not.
        split_seed: Seed of the random split if the files define none: 75 / 12.5 / 12.5 % by image (6000/1000/1000 of
            8000).
        on_error: `raise` stops at the first problems; `skip` leaves out the row, caption or image of each and counts
            them. With `skip` every image is decoded once here, so that the number of skipped images is known before
            training.
        cache: Folder in which `skip` keeps which images can be read, so that it decodes an image once; and into which
            compressed shards are unpacked (None: `runs/cache`).
        progress: Called while images are decoded.

    Raises:
        DataError: One line: the problem, the first few cases with their count, and what to do.
    """
    data = read_set(
        root,
        format=format,
        files=files,
        columns=columns,
        split_seed=split_seed,
        decode=on_error == "skip",
        cache=cache,
        progress=progress,
    )
    if on_error == "raise":
        kinds = Counter(_COUNTED[problem.kind] for problem in data.problems)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        advice = (
            f"{counts}: `clipse data check` lists them; correct them, or train without them with data.on_error=skip"
        )
        check_none(data.problems, advice=advice)
    if len(data.images) < 2:
        why = f", after {len(data.problems)} problem(s), first {data.problems[0]}" if data.problems else ""
        raise DataError(f"{root}: {len(data.images)} usable image(s){why}; image-text retrieval needs at least 2")
    return data


def read_set(
    root: str | Path,
    *,
    format: str = "auto",
    files: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    split_seed: int = 0,
    decode: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> CaptionData:
    """Read what can be used of a set, and collect what cannot; arguments as for `load_captions`.

    Args:
        decode: Whether to decode every image in full, and leave out those that are broken.

    Raises:
        DataError: No captions are found at all.
    """
    check_list(files, "files")
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root}: no such folder; data.root is the folder of images and captions")
    log = ReadLog(columns=columns or {})
    name, found = detect(root, log, format=format, files=files)
    images = find_reader(name, cache=(cache or DEFAULT_CACHE) / "shards")(found, log)
    if not images and not log.problems:
        log.add("file", Place(found[0]), "holds no captions")
    # split before anything is left out, so that a broken image does not move others to another split
    records, unlisted = _in_splits(
        [
            ImageRecord(n, image.name, image.path, image.captions, image.split, image.span)
            for n, image in enumerate(images)
        ],
        seed=split_seed,
    )
    places = {n: image.places for n, image in enumerate(images)}
    records, skipped_captions = _without_empty_captions(records, places, log)
    count = len(records)
    missing = {record.id: f"{record.path}: no such image" for record in records if not record.path.is_file()}
    if decode:
        present = [record for record in records if record.id not in missing]
        missing |= find_unreadable(present, cache=cache, progress=progress)
    for record in records:
        if record.id in missing:
            log.add("image", places[record.id][0], missing[record.id])
    records = [record for record in records if record.id not in missing and record.captions]
    return CaptionData(
        root=root,
        format=name,
        images=records,
        skipped=count - len(records) + sum(problem.kind in ("sample", "split") for problem in log.problems),
        skipped_captions=skipped_captions,
        problems=log.problems,
        notes=log.notes,
        unlisted=unlisted,
    )


_COUNTED = {
    "file": "unreadable file(s)",
    "row": "unusable row(s)",
    "split": "contradictory or unknown split(s)",
    "caption": "empty caption(s)",
    "image": "captioned image(s) that are missing or broken",
    "sample": "unusable sample(s)",
}


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
        config.root,
        format=config.format,
        files=config.files,
        columns=config.columns.given,
        split_seed=config.split_seed,
        on_error=config.on_error,
        cache=cache,
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


def _without_empty_captions(
    records: list[ImageRecord], places: Mapping[int, Sequence[Place]], log: ReadLog
) -> tuple[list[ImageRecord], int]:
    """Return the records with stripped captions and without empty ones, and the number of empty ones."""
    kept, count = [], 0
    for record in records:
        captions = tuple(caption.strip() for caption in record.captions if caption.strip())
        empty = [
            place for place, caption in zip(places[record.id], record.captions, strict=False) if not caption.strip()
        ]
        for place in empty:
            log.add("caption", place, f"{record.name}: an empty caption")
        if not record.captions:
            log.add("caption", places[record.id][0], f"{record.name}: no caption")
        count += len(empty) or (not record.captions)
        kept.append(replace(record, captions=captions))
    return kept, count
