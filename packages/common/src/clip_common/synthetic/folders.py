"""Steps that the writers of the world's sets share: splits, names of pictures, saving and progress."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from PIL import Image

from clip_common.reporting import Progress
from clip_common.synthetic.parts import Part
from clip_common.synthetic.people import Person
from clip_common.synthetic.scenes import Scene

Item = TypeVar("Item")


def check_counts(**counts: int) -> None:
    """Raise ValueError if a number of samples to draw is negative, or all are zero."""
    if min(counts.values()) < 0 or sum(counts.values()) < 1:
        given = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"nothing to draw: {given}; give numbers of 0 or more, at least one of them above 0")


def split_names(*, train: int, val: int, test: int) -> list[str]:
    """Return the split of each sample of a set: first those of "train", then "val", then "test".

    Raises:
        ValueError: A count is negative, or all are zero.
    """
    check_counts(train=train, val=val, test=test)
    return ["train"] * train + ["val"] * val + ["test"] * test


def picture_name(content: Scene | Part | Person) -> str:
    """Return the file name of a picture without its suffix, such as "scene_1_000017"."""
    return f"{type(content).__name__.lower()}_{content.seed}_{content.index:06d}"


def save_jpeg(picture: Image.Image, file: Path) -> None:
    """Save a picture as JPEG, in the quality that all sets use."""
    picture.save(file, quality=92, subsampling=0)


def track(items: Iterable[Item], *, total: int, progress: Progress | None) -> Iterator[Item]:
    """Yield the items, and call `progress(done, total)` after each has been processed."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(done, total)
