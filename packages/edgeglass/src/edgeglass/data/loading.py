"""Load a set by configuration: `read_samples`; and the steps that `edgeglass data check` takes too."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_common.captions import SPLITS, ReadLog
from clip_common.errors import DataError, printable
from clip_common.reporting import Progress
from edgeglass.config import DataConfig
from edgeglass.data.formats import detect, read_format
from edgeglass.data.inspection import inspect
from edgeglass.data.records import Record, Sample, Samples, Source
from edgeglass.data.splits import check_leaks, draw_splits, hold_out, merge_rows


def read_samples(config: DataConfig, *, progress: Progress | None = None) -> Samples:
    """Read the configured set, in splits; `hold_out` training samples become `val` if the set has none.

    Rows of the same image and sound are one sample with all their captions. Splits are those that the files state; for
    a set without any they are drawn, 80 / 10 / 10 %, and samples that share a file get the same one.

    `on_error=raise` stops at missing files and empty captions; other unreadable files are found when they are used.
    With `skip` every image and sound is decoded once here, and what cannot be used is left out of its sample. A sample
    that has nothing left is left out.

    Args:
        config: What to read.
        progress: Called while images and sounds are decoded.

    Raises:
        DataError: One line: no `data.root`, files that cannot be used, a file in two splits, missing files or empty
            captions, or no sample with two modalities.
        ImportError: The format needs a library that is not installed.
    """
    if config.root is None:
        raise DataError("data.root is not set: give a file or folder of samples, e.g. data.root=scenes/data.jsonl")
    root = Path(config.root)
    log = ReadLog() if config.on_error == "skip" else None
    format, samples, unlisted = list_samples(root, format=config.format, split_seed=config.split_seed, log=log)
    samples, empty = drop_empty_captions(samples)
    missing = find_missing(samples)
    if config.on_error == "raise":
        check_none(empty, f"{printable(root)}: %d empty caption(s)", "fill or remove them")
        check_none(list(missing.values()), f"{printable(root)}: %d file(s) are missing", "restore them")
    else:
        samples = drop_sources(samples, missing)
        found = inspect(samples, progress=progress)
        broken = {finding.source: finding.problem for finding in found if finding.problem is not None}
        samples = drop_sources(samples, broken)
        missing |= broken
    samples = [sample for sample in samples if sample.modalities]
    check_pairs(samples, root=root)
    splits = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    if config.hold_out:
        if splits["val"]:
            raise DataError(f"{printable(root)} has a val split of {len(splits['val'])}: leave data.hold_out at 0")
        splits["train"], splits["val"] = hold_out(splits["train"], count=config.hold_out, seed=config.split_seed)
    problems = [*(str(problem) for problem in (log.problems if log else ())), *missing.values(), *empty]
    return Samples(root, format, splits, problems=problems, skipped=len(missing), unlisted=unlisted)


def list_samples(
    root: Path, *, format: str, split_seed: int, log: ReadLog | None = None
) -> tuple[str, list[Sample], int]:
    """Return the format of a set, its samples in splits, and how many have none although others have one.

    Args:
        root: The file or folder.
        format: `auto`, or one of `formats.FORMATS`.
        split_seed: Seed of the splits of a set without any.
        log: As for `read_format`.

    Raises:
        DataError: No such file or folder, files that cannot be used, no samples, or a file in two splits.
    """
    check_exists(root)
    name = detect(root) if format == "auto" else format
    samples = merge_rows(read_format(root, name, log=log))
    if not samples:
        why = f", first {log.problems[0]}" if log and log.problems else ""
        raise DataError(f"{printable(root)}: holds no samples{why}")
    # split before anything is left out, so that a broken image does not move others to another split
    if not any(sample.split for sample in samples):
        samples = draw_splits(samples, seed=split_seed)
    check_leaks(samples)
    stated = [sample for sample in samples if sample.split]
    return name, stated, len(samples) - len(stated)


def check_exists(root: Path) -> None:
    """Raise DataError if there is no such file or folder."""
    if not root.exists():
        raise DataError(f"{printable(root)}: no such file or folder; data.root is the file or folder of samples")


def drop_empty_captions(samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """Return samples with stripped captions and without empty ones, and one line for each empty one."""
    kept, empty = [], []
    for sample in samples:
        captions = tuple(caption.strip() for caption in sample.captions if caption.strip())
        empty += [f"{sample.name}: an empty caption"] * (len(sample.captions) - len(captions))
        kept.append(replace(sample, captions=captions))
    return kept, empty


def find_missing(samples: Sequence[Record]) -> dict[Source, str]:
    """Return the files that do not exist, with a line each."""
    files = {source for sample in samples for source in sample.sources.values() if isinstance(source, Path)}
    return {file: f"{printable(file)}: no such file" for file in sorted(files) if not file.is_file()}


def drop_sources(samples: Sequence[Sample], sources: Collection[Source]) -> list[Sample]:
    """Return samples without these images and sounds."""
    kept = []
    for sample in samples:
        dropped: dict[str, Any] = {modality: None for modality, source in sample.sources.items() if source in sources}
        kept.append(replace(sample, **dropped) if dropped else sample)
    return kept


def check_pairs(samples: Sequence[Sample], *, root: Path) -> None:
    """Raise DataError unless some sample has two modalities, without which there is nothing to align."""
    modalities = {modality for sample in samples for modality in sample.modalities}
    if len(modalities) < 2:
        only = ", ".join(modalities) or "nothing that can be used"
        raise DataError(f"{printable(root)}: holds {only} only; alignment needs two of image, text and audio")
    if not any(len(sample.modalities) > 1 for sample in samples):
        raise DataError(
            f"{printable(root)}: no sample has two of image, text and audio: give both in one row, or files with the "
            "same stem"
        )


def check_none(problems: list[str], what: str, remedy: str) -> None:
    """Raise DataError if there are problems: `what` with their number, the first three, and the remedy."""
    if problems:
        first = "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "")
        raise DataError(f"{what % len(problems)}: {first}: {remedy}, or train without them with data.on_error=skip")
