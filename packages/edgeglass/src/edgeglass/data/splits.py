"""Splits: which samples share a file, splits drawn for a set without any, validation samples set aside, leaks."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from clip_common.errors import DataError, printable
from edgeglass.data.records import Conversation, Record, Sample


def find_files(sample: Record) -> list[str]:
    """Return the normalised paths of the files of a sample; bytes inside a larger file have none."""
    return [os.path.normpath(source.absolute()) for source in sample.sources.values() if isinstance(source, Path)]


def merge_rows(samples: Sequence[Sample]) -> list[Sample]:
    """Merge samples of the same files into one with all their captions, in the order of first appearance.

    A set may have one row for each caption. Samples of text alone, or of bytes inside a larger file, stay as they are.

    Raises:
        DataError: Rows of the same files in two splits.
    """
    merged: dict[object, Sample] = {}
    for sample in samples:
        files = find_files(sample)
        key = (*files, sample.image is None) if files and len(files) == len(sample.sources) else sample.id
        before = merged.get(key)
        if before is None:
            merged[key] = sample
            continue
        if before.split and sample.split and before.split != sample.split:
            raise _leak(files[0], before.split, sample.split)
        captions = (*before.captions, *sample.captions)
        merged[key] = replace(before, captions=captions, split=before.split or sample.split)
    return [replace(sample, id=id) for id, sample in enumerate(merged.values())]


def draw_splits(samples: Sequence[Record], *, seed: int) -> list[Record]:
    """Return samples with a split each: 80 / 10 / 10 % at random, those that share a file in the same split.

    The order of the draw is that of hashes of the names, so that new samples hardly move others. With three groups of
    samples or more, no split is empty.
    """
    groups = _draw_order(samples, seed=seed)
    held = max(1, round(len(groups) / 10)) if len(groups) >= 3 else 0
    splits = ["test"] * held + ["val"] * held + ["train"] * (len(groups) - 2 * held)
    split_of = {row: split for group, split in zip(groups, splits, strict=True) for row in group}
    return [replace(sample, split=split_of[row]) for row, sample in enumerate(samples)]


def hold_out(samples: Sequence[Sample], *, count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Set `count` training samples aside for validation; samples that share a file stay together.

    Returns:
        (train, val): disjoint, together all of `samples`. If groups of samples that share files do not add up to
        `count`, `val` is smaller.

    Raises:
        DataError: Fewer than two samples would be left to train on, or none can be set aside.
    """
    if not 0 < count <= len(samples) - 2:
        raise DataError(
            f"data.hold_out={count}: of {len(samples)} training samples, 1 to {len(samples) - 2} can be held out"
        )
    held: set[int] = set()
    for group in _draw_order(samples, seed=seed):
        if len(held) + len(group) <= count:
            held.update(group)
    if not held:
        raise DataError(f"data.hold_out={count}: more samples than that share each file: raise it")
    train = [sample for row, sample in enumerate(samples) if row not in held]
    return train, [replace(sample, split="val") for row, sample in enumerate(samples) if row in held]


def hold_out_images(
    conversations: Sequence[Conversation], *, count: int, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Set `count` training images aside for validation, each with all conversations about it; texts alone stay.

    Returns:
        (train, val): disjoint, together all of `conversations`.

    Raises:
        DataError: Fewer than two images would be left to train on.
    """
    groups = [rows for rows in _draw_order(conversations, seed=seed) if conversations[rows[0]].image is not None]
    if not 0 < count <= len(groups) - 2:
        raise DataError(
            f"data.hold_out={count}: of {len(groups)} training images, 1 to {len(groups) - 2} can be held out"
        )
    held = {row for rows in groups[:count] for row in rows}
    train = [conversation for row, conversation in enumerate(conversations) if row not in held]
    return train, [replace(conversation, split="val") for row, conversation in enumerate(conversations) if row in held]


def check_leaks(samples: Sequence[Record]) -> None:
    """Raise DataError if a file is in samples of two splits."""
    split_of: dict[str, str] = {}
    for sample in samples:
        for file in find_files(sample):
            if sample.split and split_of.setdefault(file, sample.split) != sample.split:
                raise _leak(file, split_of[file], sample.split)


def _leak(file: str, first: str, second: str) -> DataError:
    return DataError(f"{printable(file)}: in two splits, {first} and {second}: keep it in one")


def _draw_order(samples: Sequence[Record], *, seed: int) -> list[list[int]]:
    """Return groups of rows that share a file, by the hash of the first name in each."""

    def key(group: list[int]) -> bytes:
        name = min(samples[row].name for row in group)
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    return sorted(_groups(samples), key=key)


def _groups(samples: Sequence[Record]) -> Iterator[list[int]]:
    """Yield the rows of samples that share a file, directly or through others (union-find)."""
    parent = list(range(len(samples)))

    def root_of(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[str, int] = {}
    for row, sample in enumerate(samples):
        for file in find_files(sample):
            parent[root_of(row)] = root_of(first_with.setdefault(file, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(samples)):
        groups.setdefault(root_of(row), []).append(row)
    yield from groups.values()
