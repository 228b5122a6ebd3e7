"""Draw splits of a set that states none; always by image, never by caption."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clip_common.errors import DataError
from clipse.data.records import ImageRecord


def draw_splits(count: int, *, seed: int) -> list[str]:
    """Draw a split for each image: 75 / 12.5 / 12.5 % (6000/1000/1000 of 8000); with 3 images or more none is empty."""
    held = max(1, round(count / 8)) if count >= 3 else 0
    order = np.random.default_rng(seed).permutation(count)
    names = np.full(count, "train", dtype=object)
    names[order[:held]] = "test"
    names[order[held : 2 * held]] = "val"
    return [str(name) for name in names]


def hold_out(
    records: Sequence[ImageRecord], *, count: int, seed: int = 0
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Set `count` training images aside for validation, for a set without a `val` split.

    Returns:
        (train, val): disjoint, together all of `records`; the held-out records have `split="val"`.

    Raises:
        DataError: Fewer than two images would be left to train on.
    """
    if not 0 < count <= len(records) - 2:
        raise DataError(
            f"data.hold_out={count}: of {len(records)} training images, 1 to {len(records) - 2} can be held out"
        )
    held = set(np.random.default_rng(seed).permutation(len(records))[:count].tolist())
    train = [record for row, record in enumerate(records) if row not in held]
    return train, [replace(record, split="val") for row, record in enumerate(records) if row in held]
